//! Messages of the MongoDB wire protocol, as far as a proxy has to understand them.

use std::io;

use mongodb::bson::{Document, RawDocument};
use tokio::io::{AsyncRead, AsyncReadExt};

const HEADER: usize = 16;
/// The largest message that a mongod takes: 48 000 000 bytes, and more than enough for what stands around them.
const LARGEST: usize = 64 << 20;

const OP_QUERY: i32 = 2004;
const OP_MSG: i32 = 2013;

const CHECKSUM_PRESENT: u32 = 1;
/// The sender waits for no reply.
const MORE_TO_COME: u32 = 1 << 1;

/// One message, header included.
#[derive(Clone, Debug)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// Reads the next one; `None` at the end of the stream.
    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut length = [0; 4];
        if let Err(error) = stream.read_exact(&mut length).await {
            return match error.kind() {
                io::ErrorKind::UnexpectedEof => Ok(None),
                _ => Err(error),
            };
        }
        let size = u32::from_le_bytes(length) as usize;
        if !(HEADER..=LARGEST).contains(&size) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message of {size} bytes"),
            ));
        }
        let mut bytes = vec![0; size];
        bytes[..4].copy_from_slice(&length);
        stream.read_exact(&mut bytes[4..]).await?;
        Ok(Some(Self(bytes)))
    }

    /// An OP_MSG that holds one document.
    pub(super) fn new(request_id: i32, response_to: i32, document: &Document) -> Self {
        let mut body = vec![0; HEADER];
        body.extend_from_slice(&0_u32.to_le_bytes());
        body.push(0);
        append(&mut body, document);
        finish(body, request_id, response_to, OP_MSG)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn i32_at(&self, at: usize) -> i32 {
        let mut field = [0; 4];
        field.copy_from_slice(&self.0[at..at + 4]);
        i32::from_le_bytes(field)
    }

    pub(super) fn request_id(&self) -> i32 {
        self.i32_at(4)
    }

    pub(super) fn response_to(&self) -> i32 {
        self.i32_at(8)
    }

    fn op_code(&self) -> i32 {
        self.i32_at(12)
    }

    /// Whether the sender waits for a reply.
    pub(super) fn wants_reply(&self) -> bool {
        self.op_code() != OP_MSG || self.0.len() < 20 || self.i32_at(16).cast_unsigned() & MORE_TO_COME == 0
    }

    /// The command or the reply in it: the body of an OP_MSG, the query of an OP_QUERY. `None` for anything else, and for
    /// what does not parse: a server's own answer to that is better.
    pub(super) fn document(&self) -> Option<&RawDocument> {
        let bytes = &self.0[..];
        match self.op_code() {
            OP_MSG => {
                let mut sections = bytes.get(20..self.sections_end()?)?;
                loop {
                    let (kind, rest) = sections.split_first()?;
                    let size = length_at(rest)?;
                    if *kind == 0 {
                        return RawDocument::from_bytes(rest.get(..size)?).ok();
                    }
                    sections = rest.get(size..)?;
                }
            }
            OP_QUERY => {
                let at = self.query_at()?;
                let rest = bytes.get(at..)?;
                RawDocument::from_bytes(rest.get(..length_at(rest)?)?).ok()
            }
            _ => None,
        }
    }

    fn sections_end(&self) -> Option<usize> {
        let flags = u32::from_le_bytes(self.0.get(16..20)?.try_into().ok()?);
        self.0
            .len()
            .checked_sub(if flags & CHECKSUM_PRESENT == 0 { 0 } else { 4 })
    }

    /// Where the document of an OP_QUERY begins: after flags, the namespace, and two numbers.
    fn query_at(&self) -> Option<usize> {
        let name = self.0.get(20..)?;
        Some(20 + name.iter().position(|byte| *byte == 0)? + 1 + 8)
    }

    /// The same message with another document in place of its first one. Document sequences of an OP_MSG and further
    /// documents are dropped, so this is for commands that have none: hello.
    pub(super) fn with_document(&self, document: &Document) -> Self {
        let mut bytes = match self.op_code() {
            OP_QUERY => self.0[..self.query_at().unwrap_or(HEADER)].to_vec(),
            _ => {
                let flags = self.i32_at(16).cast_unsigned() & !CHECKSUM_PRESENT;
                [&self.0[..HEADER], &flags.to_le_bytes(), &[0]].concat()
            }
        };
        append(&mut bytes, document);
        finish(bytes, self.request_id(), self.response_to(), self.op_code())
    }
}

fn append(bytes: &mut Vec<u8>, document: &Document) {
    document
        .to_writer(bytes)
        .expect("a document that came from BSON or from this crate goes back to BSON");
}

fn finish(mut bytes: Vec<u8>, request_id: i32, response_to: i32, op_code: i32) -> Message {
    let length = i32::try_from(bytes.len()).expect("a message is far smaller than 2 GB");
    for (at, field) in [length, request_id, response_to, op_code].into_iter().enumerate() {
        bytes[4 * at..4 * at + 4].copy_from_slice(&field.to_le_bytes());
    }
    Message(bytes)
}

fn length_at(bytes: &[u8]) -> Option<usize> {
    let length = i32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
    usize::try_from(length).ok().filter(|length| *length >= 4)
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Document, doc};

    use super::{HEADER, Message, OP_QUERY, append, finish};

    fn parsed(message: &Message) -> Document {
        Document::try_from(message.document().unwrap()).unwrap()
    }

    #[test]
    fn a_body_is_found_behind_a_document_sequence() {
        let body = doc! {"insert": "c", "$db": "d"};
        let mut bytes = vec![0; HEADER + 4];
        let mut sequence = vec![0; 4];
        sequence.extend_from_slice(b"documents\0");
        append(&mut sequence, &doc! {"_id": 1});
        let size = i32::try_from(sequence.len()).unwrap();
        sequence[..4].copy_from_slice(&size.to_le_bytes());
        bytes.push(1);
        bytes.extend_from_slice(&sequence);
        bytes.push(0);
        append(&mut bytes, &body);
        let message = finish(bytes, 7, 0, super::OP_MSG);
        assert_eq!(parsed(&message), body);
        assert_eq!(message.request_id(), 7);
        assert!(message.wants_reply());
    }

    #[test]
    fn a_rewritten_hello_keeps_its_flags() {
        let mut bytes = vec![0; HEADER];
        let exhaust_allowed = 1_u32 << 16;
        bytes.extend_from_slice(&(exhaust_allowed | super::CHECKSUM_PRESENT).to_le_bytes());
        bytes.push(0);
        append(&mut bytes, &doc! {"hello": 1, "compression": ["zstd"]});
        bytes.extend_from_slice(&[1; 4]);
        let message = finish(bytes, 3, 0, super::OP_MSG);
        assert_eq!(parsed(&message), doc! {"hello": 1, "compression": ["zstd"]});
        let rewritten = message.with_document(&doc! {"hello": 1});
        assert_eq!(parsed(&rewritten), doc! {"hello": 1});
        assert_eq!(rewritten.bytes()[16..21], [0, 0, 1, 0, 0]);
    }

    #[test]
    fn the_hello_of_an_old_driver_is_rewritten_in_its_own_form() {
        let mut bytes = vec![0; HEADER + 4];
        bytes.extend_from_slice(b"admin.$cmd\0");
        bytes.extend_from_slice(&[0; 8]);
        append(&mut bytes, &doc! {"isMaster": 1, "compression": ["zlib"]});
        let message = finish(bytes, 3, 0, OP_QUERY);
        let rewritten = message.with_document(&doc! {"isMaster": 1});
        assert_eq!(parsed(&rewritten), doc! {"isMaster": 1});
        assert_eq!(rewritten.op_code(), OP_QUERY);
        assert_eq!(rewritten.request_id(), 3);
    }

    #[tokio::test]
    async fn messages_are_read_one_by_one() {
        let one = Message::new(1, 0, &doc! {"ping": 1});
        let two = Message::new(2, 1, &doc! {"ok": 1});
        let bytes = [one.bytes(), two.bytes()].concat();
        let mut stream = &bytes[..];
        for expected in [one, two] {
            let message = Message::read(&mut stream).await.unwrap().unwrap();
            assert_eq!(message.bytes(), expected.bytes());
        }
        assert!(Message::read(&mut stream).await.unwrap().is_none());
        assert!(Message::read(&mut &[0xff; 20][..]).await.is_err());
    }
}
