//! Whatever bytes come, decoding and converting gives a message or an error, never a panic; and
//! what we send is what the peer reads.

use proptest::prelude::*;

use super::*;

fn pos() -> impl Strategy<Value = Pos> {
    (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(epoch, txid, sum)| {
        Txid::new(txid).map_or(Pos::ZERO, |txid| Pos {
            epoch: Epoch::new(epoch),
            txid: Some(txid),
            checksum: Checksum::new(sum),
        })
    })
}

fn db() -> impl Strategy<Value = DbId> {
    any::<u64>().prop_map(DbId::new)
}

fn check_event(event: &FollowEvent) {
    let bytes = pb::FollowEvent::from(event.clone()).encode_to_vec();
    let back = FollowEvent::try_from(pb::FollowEvent::decode(&*bytes).unwrap()).unwrap();
    assert_eq!(&back, event);
}

fn check_request(request: &FollowRequest) {
    let bytes = pb::FollowRequest::from(request.clone()).encode_to_vec();
    let back = FollowRequest::try_from(pb::FollowRequest::decode(&*bytes).unwrap()).unwrap();
    assert_eq!(&back, request);
}

fn check_sums(chunk: &SumsChunk) {
    let bytes = pb::SumsChunk::from(chunk.clone()).encode_to_vec();
    let back = SumsChunk::try_from(pb::SumsChunk::decode(&*bytes).unwrap()).unwrap();
    assert_eq!(&back, chunk);
}

fn check_fetch(request: &FetchRequest) {
    let bytes = pb::FetchRequest::from(request.clone()).encode_to_vec();
    let back = FetchRequest::try_from(pb::FetchRequest::decode(&*bytes).unwrap()).unwrap();
    assert_eq!(&back, request);
}

fn check_chunk(chunk: &FetchChunk) {
    let bytes = pb::FetchChunk::from(chunk.clone()).encode_to_vec();
    let back = FetchChunk::try_from(pb::FetchChunk::decode(&*bytes).unwrap()).unwrap();
    assert_eq!(&back, chunk);
}

fn somebody() -> Caller {
    Caller {
        protocol: 1,
        software: "0.1.0".to_owned(),
        cluster: Some(ClusterId::new(7)),
        node: NodeId::new(9),
        name: "b".to_owned(),
        session: 11,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        fuzz::fuzz_message(&bytes);
    }

    #[test]
    fn damaged_messages_never_panic(
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        pos in pos(),
        db in db(),
        next in 1_u32..9,
    ) {
        let copy = CopyState {
            base: pos,
            page_size: PageSize::MIN,
            page_count: 8,
            next: PageNo::new(next).unwrap(),
        };
        let begin = FetchBegin {
            caller: somebody(), db, pos, pages: true, sums: true, resume: Some(copy), history: vec![pos],
        };
        let messages = [
            pb::FollowRequest::from(FollowRequest::Acks(vec![Ack { db, durable: pos, applied: pos }]))
                .encode_to_vec(),
            pb::FetchRequest::from(FetchRequest::Begin(begin)).encode_to_vec(),
            pb::FetchChunk::from(FetchChunk::Copy {
                copy, compare: true, common: Some(pos), oldest: Some(pos),
            })
            .encode_to_vec(),
        ];
        for mut bytes in messages {
            let at = at.index(bytes.len());
            bytes[at] = value;
            fuzz::fuzz_message(&bytes);
            fuzz::fuzz_message(&bytes[..at]);
        }
    }

    #[test]
    fn messages_survive_the_wire(pos in pos(), db in db(), run in any::<u32>(), bytes in any::<Vec<u8>>()) {
        let name = DbName::new(b"a/b \xff.db").unwrap();
        let record = Record { epoch: pos.epoch, ltx: bytes.clone().into() };
        check_event(&FollowEvent::Transactions { db, run, records: vec![record], sync_now: true });
        check_event(&FollowEvent::Behind { db, run });
        check_event(&FollowEvent::Dropped { db });
        check_event(&FollowEvent::Named { db, name: name.clone() });
        check_event(&FollowEvent::Catalog { databases: vec![(db, name)], complete: true });
        check_request(&FollowRequest::Resume { db, pos, run });
        check_request(&FollowRequest::Have { databases: vec![(db, pos)], complete: false });
        check_request(&FollowRequest::Acks(vec![Ack { db, durable: pos, applied: pos }]));
        check_request(&FollowRequest::Hello { caller: somebody(), filters: vec!["*.db".to_owned()] });
        check_fetch(&FetchRequest::Sums {
            first: PageNo::FIRST, sums: vec![pos.checksum], last: true,
        });
        check_chunk(&FetchChunk::Record { epoch: pos.epoch, pos, size: 7 });
        check_chunk(&FetchChunk::Data(bytes.clone().into()));
        check_chunk(&FetchChunk::Pages {
            first: PageNo::FIRST, data: bytes.into(), next: PageNo::new(2).unwrap(),
        });
        check_chunk(&FetchChunk::Done { pos });
        check_sums(&SumsChunk::Sums { first: PageNo::FIRST, sums: vec![pos.checksum] });
        check_sums(&SumsChunk::Changed { pages: vec![PageNo::FIRST], kept: run });
        check_sums(&SumsChunk::Done { pos });
        check_sums(&SumsChunk::Gone { pos });
        let copy =
            CopyState { base: pos, page_size: PageSize::MIN, page_count: 8, next: PageNo::FIRST };
        for common in [None, Some(pos)] {
            check_chunk(&FetchChunk::Copy { copy, compare: true, common, oldest: common });
        }
        check_fetch(&FetchRequest::Begin(FetchBegin {
            caller: somebody(), db, pos, pages: true, sums: true, resume: None, history: vec![pos],
        }));
    }
}

#[test]
fn refusals_survive_the_wire() {
    for reason in [
        Reason::Protocol,
        Reason::Cluster,
        Reason::Itself,
        Reason::Replaced,
        Reason::NotPrimary,
        Reason::NoSession,
        Reason::ProtocolError,
        Reason::NoDatabase,
        Reason::Busy,
        Reason::Stalled,
        Reason::Failed,
        Reason::Stopping,
    ] {
        let sent = Refusal { reason, message: "because".to_owned(), primary: Some("a".to_owned()) };
        assert_eq!(refusal(&Status::from(sent.clone())), Some(sent));
    }
}

#[test]
fn what_a_hostile_peer_may_send_is_an_error() {
    let name = pb::Named { database: 1, name: Bytes::from_static(b"../../etc/passwd") };
    let event = pb::FollowEvent { event: Some(pb::follow_event::Event::Named(name)) };
    assert_eq!(
        FollowEvent::try_from(event),
        Err(Malformed::Name(crate::types::NameError::Component))
    );

    let many = vec![pb::DatabasePosition::default(); ENTRIES_PER_MESSAGE + 1];
    assert!(matches!(positions(many), Err(Malformed::TooMany { .. })));

    let endless = pb::Copy {
        base: Some(Pos::ZERO.into()),
        page_size: 4096,
        page_count: u32::MAX,
        next_page: 1,
    };
    assert!(copy(endless).is_err());
    assert!(sums(&[0; 8]).is_err());
    assert!(sums(&[0x80; 9]).is_err());
}
