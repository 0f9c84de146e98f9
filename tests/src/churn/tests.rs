use super::*;

fn documents(part: Part, seed: u64) -> Vec<Document> {
    let words = Words::new(seed);
    let mut prng = Prng::for_part(seed, 2);
    (0..20)
        .map(|id| part.document(id, &words, &mut prng, Fields::All))
        .collect()
}

fn bytes(document: &Document) -> usize {
    RawDocumentBuf::from_document(document).unwrap().as_bytes().len()
}

#[test]
fn a_seed_gives_the_same_documents_and_another_gives_others() {
    for part in Part::ALL {
        assert_eq!(documents(part, 7), documents(part, 7));
        assert_ne!(documents(part, 7), documents(part, 8));
    }
}

#[test]
fn documents_are_as_long_as_the_table_says() {
    let within = |part, least: usize, most: usize| {
        for document in documents(part, 7) {
            let len = bytes(&document);
            assert!((least..=most).contains(&len), "{part:?}: {len}");
        }
    };
    within(Part::Products, 1_400, 1_650);
    within(Part::Blobs, 20_000, 90_500);
    within(Part::Chunks, 1 << 20, (1 << 20) + 100);
    within(Part::Events, 105, 130);
}

/// A megabyte of the data set is one: the shares of its parts add up.
#[test]
fn shares_add_up() {
    let total: f64 = Part::ALL
        .into_iter()
        .map(|part| {
            let documents = documents(part, 7);
            let mean = documents.iter().map(bytes).sum::<usize>() as f64 / documents.len() as f64;
            mean * part.per_megabyte()
        })
        .sum();
    assert!((0.9e6..1.1e6).contains(&total), "{total}");
}

/// A word is drawn about as often as its rank says.
#[test]
fn frequencies_fall_as_zipf_says() {
    let words = Words::new(7);
    let text = words.text(&mut Prng::new(1), 1_000_000);
    let count = |rank: usize| text.split(' ').filter(|word| *word == words.words[rank]).count() as f64;
    let ratio = count(1) / count(100);
    assert!((15.0..50.0).contains(&ratio), "{ratio}");
}

/// An update sets fields and leaves the key alone.
#[test]
fn updates_have_no_key() {
    let words = Words::new(7);
    let set = Part::Products.document(3, &words, &mut Prng::new(1), Fields::Changing);
    assert!(!set.contains_key("_id") && set.contains_key("description"));
}
