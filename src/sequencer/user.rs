//! A user as his owner keeps him: devices, their cursors, their sessions.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use super::appender::Waiter;
use super::conversation::Task as ConversationTask;
use super::dead_letters::Replay;
use super::inbox::Raise;
use super::sessions::{Confirmed, Retired};
use super::stream::{Asked, Named, Session};
use crate::link::message::{OverdueInbox, SessionNumber, Tally, Watermark};
pub use crate::link::record::NO_DEVICE;
use crate::link::record::{
    ConversationName, Cursor, Failure, GroupRole, Id, Member, Message, Revocation, Stay,
    Subscription,
};

/// Something that waits until the user is loaded.
pub enum Task {
    /// With the session whose ticket it has.
    Open(Waiter, Id, Option<SessionNumber>),
    Confirm(Confirmed),
    /// The session is over. `None`: the client said farewell; else for how long it was silent.
    Close(Retired, Option<u64>),
    Silent(Retired, bool),
    Devices(Waiter),
    /// Somebody looks at this user: for the first time, by the number of the question, or still.
    Watch(Option<u64>),
    Privacy(Waiter, bool),
    Revoke(Waiter, Id),
    Raise(Raise),
    Sync(Asked, Option<VecDeque<(ConversationName, u64)>>),
    /// The conversation's task needs this user.
    Again(ConversationName, Box<ConversationTask>),
    /// He wants to write in a channel that others run.
    Speak(Waiter, ConversationName),
    /// A `sync` of these, of which one is a channel.
    SyncNamed(Asked, Named),
    List {
        waiter: Waiter,
        after: Option<ConversationName>,
        limit: u32,
    },
    Room(Retired, u64),
    Dropped(Retired, ConversationName, u64, u64),
    /// A message to be fanned out, with its position.
    Fan(u64, Rc<Message>),
    /// This user's watermarks may have risen with the record at this position.
    Risen(u64, ConversationName),
    /// What of his inbox is too old.
    Bury(OverdueInbox),
    Replay(Replay),
    /// One of his messages failed, by the record at this position.
    Failed(u64, Failure),
    /// Somebody's watermark rose; this user's sessions are to hear, all but this device's.
    Tell {
        convo: ConversationName,
        seq: u64,
        watermark: Watermark,
        by: Id,
        tally: Option<Tally>,
    },
}

/// Where one device stands in one conversation.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeviceCursor {
    pub delivered: u64,
    pub read: u64,
    /// First undelivered seq, if there is a marker, decided.
    pub marker: u64,
    pub durable_delivered: u64,
    pub durable_read: u64,
    /// The marker that is durable; 0: none.
    pub durable_marker: u64,
    /// Rows on their way into the log that carry no marker, and so would remove a durable one.
    pub removals: u32,
    /// Highest seq that this sequencer fanned out to the device; 0: none in this life.
    pub fanned: u64,
    /// What is up to here left the user's inbox for the dead letters, durably.
    pub dead: u64,
}

impl DeviceCursor {
    /// He joined a group by the message `joined`: what is before it is none of his. That needs no
    /// record of its own, since the membership is one.
    pub fn begin_at(&mut self, joined: u64) {
        let before = joined.saturating_sub(1);
        self.delivered = self.delivered.max(before);
        self.read = self.read.max(before);
        self.durable_delivered = self.durable_delivered.max(before);
        self.durable_read = self.durable_read.max(before);
    }

    /// Something was fanned out that the device has not acknowledged.
    pub fn is_behind(&self) -> bool {
        self.marker != 0 || self.fanned > self.floor()
    }

    /// Up to here nothing is to be delivered.
    pub fn floor(&self) -> u64 {
        self.delivered.max(self.dead)
    }

    /// The message `seq` is in good hands durably: acknowledged, dead, or behind a marker that no
    /// row under way removes. (Without the latter: marker durable, its removal decided, a new
    /// message counted as marked, the removal durable, a crash, and the message is in no inbox.)
    pub fn settles(&self, seq: u64) -> bool {
        let marked = self.durable_marker != 0 && self.marker != 0 && self.removals == 0;
        self.durable_delivered.max(self.dead) >= seq || marked
    }

    /// The row that says so.
    pub fn row(&self, user: &Id, device: &str, convo: &ConversationName) -> Cursor {
        let DeviceCursor { delivered, read, marker, .. } = *self;
        let (user, device, convo) = (user.clone(), device.into(), convo.clone());
        Cursor { user, device, convo, delivered, read, marker }
    }

    /// The log says all that is here.
    fn is_settled(&self) -> bool {
        let decided = (self.delivered, self.read, self.marker);
        let durable = (self.durable_delivered, self.durable_read, self.durable_marker);
        decided == durable && self.removals == 0
    }

    fn stored(cursor: &Cursor) -> DeviceCursor {
        DeviceCursor {
            delivered: cursor.delivered,
            read: cursor.read,
            marker: cursor.marker,
            durable_delivered: cursor.delivered,
            durable_read: cursor.read,
            durable_marker: cursor.marker,
            removals: 0,
            fanned: 0,
            dead: 0,
        }
    }
}

/// One device.
#[derive(Default)]
pub struct Device {
    pub cursors: BTreeMap<ConversationName, DeviceCursor>,
    pub session: Option<Box<Session>>,
    /// Its record is in the log, durably.
    pub known: bool,
    /// Where its record stands, if this life wrote it.
    pub logged_at: Option<u64>,
    /// When it was last there, unless it is now; ms since 1970.
    pub seen_ms: u64,
    /// The same as the log says, or will say soon.
    pub logged_seen_ms: u64,
}

/// See the module. Loading until the store answered.
#[derive(Default)]
pub struct User {
    pub loaded: bool,
    pub tasks: VecDeque<Task>,
    pub devices: BTreeMap<Id, Device>,
    /// Messages in flight to this user's devices.
    pub flights: usize,
    /// What others were told of this user's watermarks in this life: (delivered, read).
    pub told: BTreeMap<ConversationName, (u64, u64)>,
    /// His rows in the groups where he is or was, as they durably are.
    pub groups: BTreeMap<ConversationName, Member>,
    /// The channels to which he is or was subscribed, as it durably is.
    pub channels: BTreeMap<ConversationName, Subscription>,
    /// Groups and channels that he makes, on their way into the log.
    pub owning: u64,
    /// Changes of his subscriptions on their way into the log.
    pub subscribing: u64,
    /// Devices that were revoked, the last of each name.
    pub revoked: BTreeMap<Id, Revocation>,
    /// Those of them whose record is not durable, with its position.
    pub revoking: BTreeMap<Id, u64>,
    /// Others are not to see when he is there, as it durably is.
    pub hidden: bool,
    /// Changes of that on their way into the log.
    pub privacy_under_way: u32,
    /// Up to where his inbox was emptied into the dead letters.
    pub dead: BTreeMap<ConversationName, u64>,
    /// Of his own messages, by conversation and seq: what he is told when he connects.
    pub failures: BTreeMap<(ConversationName, u64), Failure>,
}

impl User {
    /// The store knows all that is here, but for sessions at rest.
    pub fn is_idle(&self) -> bool {
        let idle = |(id, device): (&Id, &Device)| {
            let known = device.known || id.is_empty();
            let rests = device.session.as_ref().is_none_or(|s| s.is_at_rest(&device.cursors));
            known && rests && device.cursors.values().all(|c| c.is_settled())
        };
        let quiet = self.tasks.is_empty() && self.flights == 0;
        let decided = self.revoking.is_empty() && self.privacy_under_way == 0;
        let quiet = quiet && decided && self.owning == 0 && self.subscribing == 0;
        self.loaded && quiet && self.devices.iter().all(idle)
    }

    /// His row in a group. One that became durable while he was being loaded may come first.
    pub fn note_group(&mut self, convo: ConversationName, member: Member) {
        let known = self.groups.get(&convo).map_or(0, |known| known.version);
        if member.version >= known {
            self.groups.insert(convo, member);
        }
    }

    /// Whether he is subscribed to the channel.
    pub fn hears(&self, convo: &str) -> bool {
        self.channels.get(convo).is_some_and(|row| row.is_active)
    }

    /// Whether his sessions hear any channel.
    pub fn listens(&self) -> bool {
        self.channels.values().any(|row| row.is_active)
    }

    /// Groups and channels of his own, those that he is making too.
    pub fn owned_count(&self) -> u64 {
        let owned = |member: &&Member| member.is_in() && member.role == GroupRole::Owner;
        let groups = self.groups.values().filter(owned).count();
        let channels = self.channels.values().filter(|row| row.since == 1).count();
        (groups + channels) as u64 + self.owning
    }

    /// His last stay in a group; `None`: it is a direct conversation.
    pub fn stay(&self, convo: &str) -> Option<Stay> {
        self.groups.get(convo).map(Member::last_stay)
    }

    /// Takes a piece of what the store has; `complete`: it was the last one.
    pub fn load(&mut self, devices: Vec<(Id, u64)>, cursors: &[Cursor], complete: bool) {
        self.loaded = complete;
        for (device, seen_ms) in devices {
            let device = self.devices.entry(device).or_default();
            device.known = true;
            (device.seen_ms, device.logged_seen_ms) = (seen_ms, seen_ms);
        }
        for cursor in cursors {
            let device = self.devices.entry(cursor.device.clone()).or_default();
            device.cursors.insert(cursor.convo.clone(), DeviceCursor::stored(cursor));
        }
    }

    /// What is known of dead letters; what became durable while he was being loaded is newer.
    pub fn load_dead(&mut self, dead: Vec<(ConversationName, u64)>, failures: Vec<Failure>) {
        for (convo, upto) in dead {
            self.dead.entry(convo).or_insert(upto);
        }
        for (convo, upto) in self.dead.clone() {
            self.set_dead(&convo, upto);
        }
        for failure in failures {
            self.failures.entry((failure.convo.clone(), failure.seq)).or_insert(failure);
        }
    }

    /// His inbox ends above this seq: the devices whose markers are below it.
    pub fn set_dead(&mut self, convo: &ConversationName, upto: u64) -> Vec<Id> {
        self.dead.insert(convo.clone(), upto);
        let mut marked = Vec::new();
        for (name, device) in &mut self.devices {
            if let Some(cursor) = device.cursors.get_mut(convo) {
                cursor.dead = upto;
                if cursor.marker != 0 && cursor.marker <= upto {
                    marked.push(name.clone());
                }
            }
        }
        marked
    }

    /// Devices that a message goes to: the real ones, or the pseudo-device if there is none.
    pub fn targets(&mut self) -> Vec<Id> {
        let real = |id: &&Id| !id.is_empty();
        let devices: Vec<Id> = self.devices.keys().filter(real).cloned().collect();
        if devices.is_empty() {
            self.devices.entry(NO_DEVICE.into()).or_default();
            return vec![NO_DEVICE.into()];
        }
        devices
    }

    /// The user's watermark: what at least one device has durably acknowledged.
    pub fn durable_watermarks(&self, convo: &str) -> (u64, u64) {
        let cursors = self.devices.values().filter_map(|device| device.cursors.get(convo));
        cursors.fold((0, 0), |(delivered, read), cursor| {
            (delivered.max(cursor.durable_delivered), read.max(cursor.durable_read))
        })
    }

    /// Where a new device starts: at what the user's devices have acknowledged, durably or not yet;
    /// with a marker wherever something beyond that was fanned out.
    pub fn starting_cursors(&self) -> BTreeMap<ConversationName, DeviceCursor> {
        let mut starting: BTreeMap<ConversationName, DeviceCursor> = BTreeMap::new();
        // Beside real devices the pseudo-device says only how far those had come that were revoked.
        let real = self.devices.keys().filter(|id| !id.is_empty()).count();
        let cursors = self.devices.iter().flat_map(|(id, device)| {
            let counts = real == 0 || !id.is_empty();
            device.cursors.iter().map(move |(convo, cursor)| (convo, cursor, counts))
        });
        for (convo, cursor, counts) in cursors {
            let start = starting.entry(convo.clone()).or_default();
            start.delivered = start.delivered.max(cursor.delivered);
            start.read = start.read.max(cursor.read);
            if !counts {
                continue;
            }
            start.fanned = start.fanned.max(cursor.fanned);
            start.dead = start.dead.max(cursor.dead);
            // Gathered in `marker` for now: how many devices have one decides below.
            start.marker += u64::from(cursor.marker != 0);
        }
        let devices = real.max(1) as u64;
        for start in starting.values_mut() {
            let all_marked = start.marker > 0 && start.marker == devices;
            let behind = all_marked || start.fanned > start.floor();
            start.marker = if behind { start.floor() + 1 } else { 0 };
        }
        starting
    }

    /// What a device that goes leaves to the pseudo-device: how far it had come, where no other one
    /// has; and what was not delivered, if it was the last one. Returns what is news of that.
    pub fn inherit(&mut self, gone: &Device) -> Vec<(ConversationName, DeviceCursor)> {
        let is_last = self.devices.keys().all(|id| id.is_empty());
        let mut news = Vec::new();
        for (convo, cursor) in &gone.cursors {
            let others = self.devices.values().filter_map(|device| device.cursors.get(convo));
            let is_ahead = others.fold(true, |ahead, other| {
                // What another has decided is not in the log before this one's going.
                let delivered = cursor.delivered > other.durable_delivered;
                ahead && (delivered || cursor.read > other.durable_read)
            });
            if !is_ahead && !is_last {
                continue;
            }
            let heirs = &mut self.devices.entry(NO_DEVICE.into()).or_default().cursors;
            let heir = heirs.entry(convo.clone()).or_default();
            heir.delivered = heir.delivered.max(cursor.delivered);
            heir.read = heir.read.max(cursor.read);
            heir.durable_delivered = heir.durable_delivered.max(cursor.durable_delivered);
            heir.durable_read = heir.durable_read.max(cursor.durable_read);
            heir.fanned = heir.fanned.max(cursor.fanned);
            if is_last {
                let is_behind = cursor.marker != 0 || heir.fanned > heir.delivered;
                heir.marker = if is_behind { heir.delivered + 1 } else { 0 };
            }
            heir.removals += u32::from(heir.marker == 0);
            news.push((convo.clone(), *heir));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor(device: &str, delivered: u64, marker: u64) -> Cursor {
        let (user, convo) = ("bob".into(), "dm:alice:bob".into());
        Cursor { user, device: device.into(), convo, delivered, read: 0, marker }
    }

    #[test]
    fn the_first_device_inherits_the_marker_of_the_user() {
        let mut user = User::default();
        user.load(Vec::new(), &[cursor(NO_DEVICE, 0, 1)], true);
        assert_eq!(user.starting_cursors()["dm:alice:bob"].marker, 1);
    }

    #[test]
    fn a_new_device_starts_where_the_foremost_stands() {
        let mut user = User::default();
        let cursors = [cursor("phone", 7, 0), cursor("tablet", 3, 4)];
        user.load(vec![("phone".into(), 1), ("tablet".into(), 1)], &cursors, true);
        let start = user.starting_cursors()["dm:alice:bob"];
        assert_eq!((start.delivered, start.marker), (7, 0));
    }

    #[test]
    fn a_new_device_is_behind_where_all_others_are() {
        let mut user = User::default();
        let cursors = [cursor("phone", 7, 8), cursor("tablet", 3, 4)];
        user.load(vec![("phone".into(), 1), ("tablet".into(), 1)], &cursors, true);
        let start = user.starting_cursors()["dm:alice:bob"];
        assert_eq!((start.delivered, start.marker), (7, 8));
    }
}
