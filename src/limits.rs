//! Every bound of the system, with its reason; the ones that depend on each other are tied here.

/// Ids of users, devices, groups and client messages, in bytes of UTF-8.
pub const ID_SIZE_MAX: usize = 64;
/// `dm:` + two ids whose every byte may be percent-encoded + `:`.
pub const CONVERSATION_NAME_SIZE_MAX: usize = 3 + 2 * 3 * ID_SIZE_MAX + 1;
/// A message's body, decoded.
pub const BODY_SIZE_MAX: usize = 65_536;
/// One frame or reassembled message from a chat client; over it the connection closes with 1009.
pub const CLIENT_MESSAGE_SIZE_MAX: usize = 131_072;
/// One frame to a chat client.
pub const SERVER_FRAME_SIZE_MAX: usize = 512 * 1024;
/// One message of `aldis echo`, whose peers test with large ones.
pub const ECHO_MESSAGE_SIZE_MAX: usize = 16 * 1024 * 1024;
/// Members of a group, its owner counted.
pub const GROUP_MEMBER_COUNT_MAX: usize = 1_024;
/// The body of a system message: every member named, each byte of a name escaped in JSON.
pub const SYSTEM_BODY_SIZE_MAX: usize = GROUP_MEMBER_COUNT_MAX * (2 * ID_SIZE_MAX + 3) + 512;
/// The HTTP request that asks for the upgrade, head only.
pub const REQUEST_HEAD_SIZE_MAX: usize = 8 * 1024;
/// Header fields of that request.
pub const REQUEST_HEADER_COUNT_MAX: usize = 64;
/// One entry on a link: the largest is a log batch or a chunk of a range read.
pub const LINK_ENTRY_SIZE_MAX: usize = 4 * 1024 * 1024;
/// One frame of a link's greeting: two names and a proof. Strangers can make us keep no more.
pub const LINK_GREETING_SIZE_MAX: usize = 4 * 1024;
/// Bytes a link keeps unacknowledged in one direction before it refuses more.
pub const LINK_WINDOW_SIZE: usize = 64 * 1024 * 1024;
/// Connections of one edge shard: no ring's socket table is larger.
pub const SHARD_SLOT_COUNT_MAX: u32 = 1 << 20;
/// Bytes of records in one log batch: ends a batch early, so that a commit stays short.
pub const BATCH_SIZE_MAX: usize = 1024 * 1024;
/// One page-sized chunk of a backlog on its way to a session.
pub const CHUNK_SIZE_MAX: usize = 256 * 1024;
/// After so long without a sign of life a client is taken for gone, connected or not.
pub const SILENT_MS: u64 = 45_000;
/// Users whose presence one connection may be told.
pub const CONNECTION_SUBSCRIPTION_COUNT_MAX: usize = 500;
/// The same of all connections of one edge shard together.
pub const SHARD_SUBSCRIPTION_COUNT_MAX: usize = 1_000_000;
/// Frames with news of presence, and of who is typing, that one edge shard sends in a second.
pub const PRESENCE_FRAMES_PER_S_MAX: u64 = 10_000;
/// How long a ticket is good for, in milliseconds.
pub const TICKET_LIFETIME_MS: u64 = 24 * 60 * 60 * 1_000;
/// Devices revoked within that time of which every edge shard knows. Of more than that the
/// sequencer still lets none in, but says so later.
pub const REVOCATION_COUNT_MAX: usize = 65_536;

const _: () = assert!(BODY_SIZE_MAX * 4 / 3 < CLIENT_MESSAGE_SIZE_MAX);
// JSON may escape each byte of a body as `\u00xx`; a frame must hold the worst of them.
const _: () = assert!(BODY_SIZE_MAX * 6 + 4096 < SERVER_FRAME_SIZE_MAX);
// A batch is one entry, and one message may start a batch that is otherwise full.
const _: () = assert!(BATCH_SIZE_MAX + BODY_SIZE_MAX + 4096 < LINK_ENTRY_SIZE_MAX);
const _: () = assert!(CHUNK_SIZE_MAX + BODY_SIZE_MAX + 4096 < LINK_ENTRY_SIZE_MAX);
// A system message's body is JSON, and escaped once more in a frame.
const _: () = assert!(SYSTEM_BODY_SIZE_MAX * 2 + 4096 < SERVER_FRAME_SIZE_MAX);
// Its record has a row for every member beside the body.
const _: () =
    assert!(SYSTEM_BODY_SIZE_MAX + GROUP_MEMBER_COUNT_MAX * (ID_SIZE_MAX + 256) < BATCH_SIZE_MAX);
const _: () = assert!(LINK_WINDOW_SIZE > 4 * LINK_ENTRY_SIZE_MAX);
