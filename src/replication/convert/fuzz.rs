//! What must hold for any message at all.

use super::*;

/// Decodes bytes as every message of the protocol and converts what decodes.
///
/// # Panics
/// If a message that is accepted does not survive the wire: a bug.
pub fn fuzz_message(bytes: &[u8]) {
    survives::<pb::FollowRequest, FollowRequest>(bytes);
    survives::<pb::FollowEvent, FollowEvent>(bytes);
    survives::<pb::Beat, Beat>(bytes);
    survives::<pb::FetchRequest, FetchRequest>(bytes);
    survives::<pb::FetchChunk, FetchChunk>(bytes);
    survives::<pb::SumsRequest, SumsRequest>(bytes);
    survives::<pb::SumsChunk, SumsChunk>(bytes);
    if let Ok(raw) = pb::HeartbeatRequest::decode(bytes)
        && let Ok(somebody) = caller(raw.caller)
    {
        let raw = heartbeat_request(somebody.clone());
        assert_eq!(caller(raw.caller).ok(), Some(somebody), "BUG: another caller");
    }
    if let Some(found) = refusal(&Status::with_details(Code::Unknown, "x", bytes.to_vec().into())) {
        assert_eq!(refusal(&Status::from(found.clone())), Some(found), "BUG: another refusal");
    }
}

fn survives<Raw, T>(bytes: &[u8])
where
    Raw: prost::Message + Default + From<T>,
    T: TryFrom<Raw, Error = Malformed> + Clone + PartialEq + std::fmt::Debug,
{
    let Ok(raw) = Raw::decode(bytes) else { return };
    let Ok(message) = T::try_from(raw) else { return };
    let again = Raw::from(message.clone()).encode_to_vec();
    let again = Raw::decode(&*again).ok().and_then(|raw| T::try_from(raw).ok());
    assert_eq!(again, Some(message), "BUG: another message");
}
