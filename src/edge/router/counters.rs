//! What the router counts. Plain numbers of one shard; the admin page adds the shards up.

/// All but `connections` only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chat connections now.
    pub connections: u64,
    /// Handshakes that became connections.
    pub accepted: u64,
    /// Sessions that were welcomed.
    pub welcomed: u64,
    pub frames_in: u64,
    pub frames_out: u64,
    /// Frames that were no operation, or one of a later version.
    pub rejected: u64,
    /// Operations answered `unavailable` because a bound was reached.
    pub overloaded: u64,
    /// Operations answered `unavailable` because they had waited for the link too long.
    pub expired: u64,
    /// Sends answered `sent`.
    pub sent: u64,
    /// Operations that the sequencer refused.
    pub refused: u64,
    /// Messages queued to connections, live and from backlogs.
    pub pushed: u64,
    /// Pushes for a connection or a session that is no more.
    pub stale_pushes: u64,
    /// Live pushes reported back because their connection is behind.
    pub dropped_pushes: u64,
    /// How often a connection fell behind.
    pub behind: u64,
    /// Connections cut because they took nothing off their queue.
    pub cut_slow: u64,
    /// Connections closed because the token or ticket of their client expired.
    pub cut_expired: u64,
    /// Connections closed because their device was revoked.
    pub cut_revoked: u64,
    /// Frames that told of presence.
    pub presence_frames: u64,
    /// News of presence that were not told: newer ones took their place, or were what is known.
    pub presence_coalesced: u64,
    /// Frames that told of somebody typing, and those that there was no room for.
    pub typing_frames: u64,
    pub typing_dropped: u64,
    /// Answers to nothing that was asked. Must read 0.
    pub unknown_answers: u64,
    /// Entries of the link that could not be decoded. Must read 0.
    pub malformed_entries: u64,
    /// Sequencers refused because a higher epoch had been served.
    pub stale_sequencers: u64,
    /// Link sessions begun with the sequencer.
    pub link_sessions: u64,
}
