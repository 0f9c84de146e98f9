use super::*;

fn packed(mut bytes: &[u8]) -> Vec<u64> {
    let mut found = Vec::new();
    let mut packed = Packed(std::mem::take(&mut bytes));
    while let Some(number) = packed.number() {
        found.push(number);
    }
    found
}

#[test]
fn packed_integers_of_every_length() {
    assert_eq!(packed(&[0x80, 0xbf]), [0, 63]);
    assert_eq!(packed(&[0xc0, 0x00, 0xdf, 0xff]), [64, 8255]);
    assert_eq!(packed(&[0xe0, 0xe1, 0x01, 0xe2, 0x01, 0x00]), [8256, 8257, 8512]);
    assert!(packed(&[0xe2, 0x01]).is_empty());
}

#[test]
fn configurations_nest() {
    let config = r#"a=1,b=(c="x,y)",d=(e=2)),f=,g"#;
    assert_eq!(
        entries(config),
        [("a", "1"), ("b", r#"(c="x,y)",d=(e=2))"#), ("f", ""), ("g", "")]
    );
    assert_eq!(value(value(config, "b").unwrap(), "c"), Some("x,y)"));
    assert_eq!(value(config, "c"), None);
}

#[test]
fn what_is_free_is_left_out_and_the_lists_are_not() {
    // Root at sector 1, no list of what was allocated, the list of what is free at sector 3, none of what was discarded.
    let address = [
        1, 0x80, 0x81, 0x80, 0x80, 0x80, 0x80, 0x82, 0x81, 0x80, 0x80, 0x80, 0x80, 0xe2, 0x4f, 0xc0, 0x80,
    ];
    let mut file = vec![0; 7 * 4096];
    let mut list: Vec<u8> = vec![0xe2, 0xf5, 0x1a, 0x80];
    // Sectors 2 to 4, so the list itself too.
    for number in [2 * 4096_u64, 3 * 4096] {
        let number = number - 64;
        match number {
            0..8192 => list.extend([0xc0 | (number >> 8) as u8, number as u8]),
            _ => {
                let number = number - 8192;
                list.extend([0xe2, (number >> 8) as u8, number as u8]);
            }
        }
    }
    list.extend([0x80, 0x80]);
    let at = 3 * 4096 + HEADERS;
    file[at..at + list.len()].copy_from_slice(&list);
    let live = live(&address, &file).unwrap();
    assert_eq!(live.size, 7 * 4096);
    assert_eq!(live.ranges, [0..2 * 4096, 3 * 4096..4 * 4096, 5 * 4096..7 * 4096]);
    assert_eq!(live.bytes(), 5 * 4096);
}
