use super::*;

#[test]
#[allow(clippy::single_range_in_vec_init)]
fn what_is_missing_is_the_rest() {
    let mut done = Done::default();
    done.add(3, 10..20);
    done.add(3, 40..50);
    done.add(3, 15..25);
    done.add(1, 0..9);
    done.tidy();
    done.set_through((2, 100));
    assert_eq!(done.missing(1, 0..9), []);
    assert_eq!(done.missing(2, 50..150), [100..150]);
    assert_eq!(done.missing(3, 0..60), [0..10, 25..40, 50..60]);
    assert_eq!(done.missing(3, 12..18), []);
    assert_eq!(done.missing(3, 18..45), [25..40]);
    assert_eq!(done.missing(4, 0..5), [0..5]);
    assert_eq!(done.start(), (2, 100));
    done.forget(1, 9);
    assert_eq!(done.missing(1, 0..9), [0..9]);
    assert_eq!(done.start(), (1, 0));
}

/// Against a set of single bytes.
#[test]
fn ranges_behave_as_a_set_of_bytes() {
    let mut seed = 1u64;
    let mut dice = |n: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    for _ in 0..200 {
        let (mut done, mut model) = (Done::default(), HashSet::new());
        for _ in 0..dice(20) {
            let (file, start) = (dice(3), dice(60));
            let end = start + 1 + dice(9);
            done.add(file, start..end);
            model.extend((start..end).map(|b| (file, b)));
        }
        done.tidy();
        let through = (dice(3), dice(60));
        done.set_through(through);
        let is_done = |point: Point| point < through || model.contains(&point);
        for file in 0..3 {
            let (start, end) = (dice(30), 30 + dice(40));
            let missing = done.missing(file, start..end);
            assert!(missing.windows(2).all(|w| w[0].end < w[1].start));
            for byte in start..end {
                let told = missing.iter().any(|r| r.contains(&byte));
                assert_eq!(told, !is_done((file, byte)), "file {file}, byte {byte}");
            }
        }
    }
}
