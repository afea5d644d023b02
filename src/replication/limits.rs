//! Every bound of the protocol, by name. What exceeds one is refused or sent another way.

use std::time::Duration;

/// The protocol this program speaks. Raised when an older peer could misunderstand a message.
pub const PROTOCOL: u32 = 1;

/// Log bytes of one database per turn of the live stream.
pub(crate) const TURN_BYTES: usize = 256 * 1024;
/// The largest record on the live stream; a larger one goes through Fetch.
pub(crate) const LIVE_RECORD_BYTES_MAX: usize = 1024 * 1024;
/// More transactions than this behind, and the live stream sends a merged change set.
pub(crate) const LIVE_RECORDS_MAX: u64 = 256;
/// Log bytes merged at once for the live stream.
pub(crate) const LIVE_MERGE_BYTES: u64 = 4 * 1024 * 1024;

/// More records than this behind, and Fetch sends merged change sets.
pub(crate) const CATCH_UP_RECORDS_MAX: u64 = 256;
/// More log bytes than this behind, and Fetch sends merged change sets.
pub(crate) const CATCH_UP_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Log bytes merged at once by Fetch: bounds the memory of both sides.
pub(crate) const FETCH_MERGE_BYTES: u64 = 32 * 1024 * 1024;
/// Up to here catching up by log is never worse than copying pages.
pub(crate) const LOG_BYTES_CHEAP: u64 = 64 * 1024 * 1024;
/// A record above this is never sent: the pages are copied instead.
pub(crate) const RECORD_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Bytes of pages or of a change set in one chunk of Fetch.
pub(crate) const CHUNK_BYTES: usize = 256 * 1024;
/// Page sums in one message.
pub(crate) const SUMS_PER_MESSAGE: u32 = 1024;
/// What one gRPC message may hold, on both sides.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Events that wait for a follower to read; then the primary stops reading its log for it.
pub(crate) const EVENTS_QUEUED: usize = 4;
/// Chunks that wait for a follower to read.
pub(crate) const CHUNKS_QUEUED: usize = 2;
/// Messages that wait for the primary to read.
pub(crate) const REQUESTS_QUEUED: usize = 16;
/// Received turns that wait for one lane of the follower.
pub(crate) const LANE_QUEUED: usize = 8;
/// Threads that receive, and as many that sync: databases are spread over them.
pub(crate) const LANES: usize = 4;

/// Databases, or positions, in one message.
pub(crate) const ENTRIES_PER_MESSAGE: usize = 1024;
/// Bytes of names in one message of the catalog.
pub(crate) const NAMES_BYTES_PER_MESSAGE: usize = 256 * 1024;
/// Databases of one node.
pub(crate) const DATABASES_MAX: usize = 1 << 20;
/// Positions of a follower's history in one Fetch.
pub(crate) const HISTORY_MAX: usize = 256;
/// Databases that a beat may name before the catalog does.
pub(crate) const EARLY_REPORTS_MAX: usize = 4096;
/// Globs of a follower.
pub(crate) const FILTERS_MAX: usize = 64;
/// Bytes of one glob.
pub(crate) const FILTER_BYTES_MAX: usize = 1024;
/// Bytes of a node's name and of a version.
pub(crate) const TEXT_BYTES_MAX: usize = 255;

/// Connections of one server.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Streams of one connection.
pub(crate) const STREAMS_PER_CONNECTION: u32 = 32;
/// Connections of one follower that are closed when it does not read.
pub(crate) const CONNECTIONS_PER_FOLLOWER: usize = 32;
/// Followers of one primary.
pub(crate) const FOLLOWERS_MAX: usize = 64;
/// Fetches that one primary serves at a time.
pub(crate) const FETCHES_SERVED_MAX: usize = 64;
/// Fetches that one primary serves to one follower at a time.
pub(crate) const FETCHES_PER_FOLLOWER: usize = 16;
/// Fetches that a follower runs at a time, copies not counted.
pub(crate) const CATCH_UPS_MAX: usize = 4;
/// Copies that a follower runs at a time.
pub(crate) const COPIES_MAX: usize = 2;

/// HTTP/2 window of one stream: what a peer may send ahead of its reader.
pub(crate) const STREAM_WINDOW: u32 = 1024 * 1024;
/// HTTP/2 window of a connection: more than its streams can fill, so that none starves another.
pub(crate) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// To connect.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For the first messages of a stream.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// For all positions that a follower says at the start of a stream.
pub(crate) const POSITIONS_TIMEOUT: Duration = Duration::from_secs(30);
/// HTTP/2 pings: together with [`PING_TIMEOUT`] a dead peer is noticed within 3 seconds.
pub(crate) const PING_INTERVAL: Duration = Duration::from_millis(1000);
/// How long a ping may take.
pub(crate) const PING_TIMEOUT: Duration = Duration::from_millis(1500);
/// Between two beats.
pub(crate) const BEAT_INTERVAL: Duration = Duration::from_millis(200);
/// Without a beat for this long the primary is lost.
pub(crate) const BEAT_TIMEOUT: Duration = Duration::from_millis(2500);
/// A peer that reads nothing for this long is dropped.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one side of a Fetch may take for a chunk: the disk behind it may be busy.
pub(crate) const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);
/// How long streams may take to end when the server stops.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a stream checks that this node is still the primary.
pub(crate) const ROLE_CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// From one round of the live stream to the next. A transaction after a quiet moment goes at once; under load
/// one round carries many, which costs both sides a fraction of the work.
pub(crate) const ROUND_PAUSE: Duration = Duration::from_millis(1);
/// Between two messages of acknowledgements, for the same reason.
pub(crate) const ACK_PAUSE: Duration = Duration::from_millis(5);

/// First pause before connecting again.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// Longest pause before connecting again.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Pause after a refusal that only a person can resolve.
pub(crate) const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// First pause before fetching a database again.
pub(crate) const FETCH_BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest pause before fetching a database again.
pub(crate) const FETCH_BACKOFF_MAX: Duration = Duration::from_secs(30);
/// First pause before a database that could not be made or named is tried again.
pub(crate) const NAMING_RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause before it is tried again.
pub(crate) const NAMING_RETRY_MAX: Duration = Duration::from_secs(15);
/// How long a new connection waits for the catalog to be carried out before it takes transactions.
pub(crate) const SETTLE_WAIT: Duration = Duration::from_secs(5);
/// How long a follower that is stopped waits for its threads and for what they are doing on the disk.
pub(crate) const FOLLOWER_STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a copy's progress is made durable, in bytes.
pub(crate) const PROGRESS_BYTES: u64 = 16 * 1024 * 1024;
/// How often positions are looked at that were received and not yet applied.
pub(crate) const APPLIED_POLL: Duration = Duration::from_millis(2);
/// How exactly it is noted when transactions were committed.
pub(crate) const COMMIT_SAMPLE_PAUSE: Duration = Duration::from_millis(10);
/// Samples of when transactions were committed, per database.
pub(crate) const COMMIT_SAMPLES_MAX: usize = 64;
