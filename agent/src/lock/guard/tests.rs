use super::*;

/// Runs a guard's life in this process (without leaving its session) and returns what it said.
fn talk(orders: &str) -> Vec<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut said = Vec::new();
    let stdin = std::io::Cursor::new(orders.to_owned().into_bytes());
    runtime.block_on(
        Guard {
            orders: listen(stdin),
            stdout: &mut said,
        }
        .live(),
    );
    String::from_utf8(said)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn without_orders_or_with_strange_ones_it_ends_in_silence() {
    assert_eq!(talk(""), []);
    assert_eq!(talk("hello\n"), []);
    assert_eq!(talk("{\"say\":\"lock\"}\n"), []);
}

#[test]
fn a_server_that_does_not_answer_is_told() {
    let orders = "{\"say\":\"connect\",\"uri\":\"mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300\",\
                  \"node\":\"127.0.0.1:1\",\"nonce\":\"n\"}\n";
    let said = talk(orders);
    assert!(
        matches!(said.as_slice(), [Report::Failed { failure: CommandFailure::Unreachable { reason } }]
            if reason == "connection refused"),
        "{said:?}"
    );
}

#[test]
fn a_bad_connection_string_is_told_without_its_password() {
    let orders =
        "{\"say\":\"connect\",\"uri\":\"mongodb://me:sesame@/x\",\"node\":\"h:1\",\"nonce\":\"n\"}\n";
    let said = talk(orders);
    assert!(
        matches!(
            said.as_slice(),
            [Report::Failed {
                failure: CommandFailure::Uri { .. }
            }]
        ),
        "{said:?}"
    );
    assert!(!format!("{said:?}").contains("sesame"), "{said:?}");
}
