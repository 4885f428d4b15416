//! A model of channels, by their records: who owns one, who writes, who hears.

use std::collections::BTreeMap;

use super::ledger::Verdict;
use crate::link::record::{ChannelState, ConversationName, Id, Message, Subscription};

/// What a user was to a channel.
#[derive(Clone, Copy, Debug, Default)]
struct Hearer {
    since: u64,
    is_active: bool,
    is_counted: bool,
    /// The head when he last was subscribed: what is above it is not for him.
    upto: u64,
    /// He may write, or might once.
    has_written: bool,
}

#[derive(Default)]
struct Channel {
    state: Option<ChannelState>,
    hearers: BTreeMap<Id, Hearer>,
}

/// See the module.
#[derive(Default)]
pub struct Channels {
    channels: BTreeMap<ConversationName, Channel>,
}

impl Channels {
    pub fn is_one(&self, convo: &str) -> bool {
        self.channels.contains_key(convo)
    }

    /// The durable version; 0: there is none.
    pub fn version(&self, convo: &str) -> u64 {
        self.state(convo).map_or(0, |state| state.version)
    }

    pub fn owner(&self, convo: &str) -> Option<&str> {
        self.state(convo).map(|state| &*state.owner)
    }

    /// The owner and the admins, by name.
    pub fn writers(&self, convo: &str) -> Vec<&str> {
        let state = self.state(convo);
        let mut writers: Vec<&str> = state
            .into_iter()
            .flat_map(|state| state.admins.iter().chain([&state.owner]))
            .map(|user| &**user)
            .collect();
        writers.sort_unstable();
        writers
    }

    /// Whether he is subscribed.
    pub fn hears(&self, user: &str, convo: &str) -> bool {
        self.hearer(user, convo).is_some_and(|hearer| hearer.is_active)
    }

    /// Whether he may read it.
    pub fn is_member(&self, user: &str, convo: &str) -> bool {
        self.hears(user, convo) || self.writers(convo).contains(&user)
    }

    /// Whether the message may have reached him: he was subscribed when or after it was written.
    pub fn may_hear(&self, user: &str, convo: &str, seq: u64) -> bool {
        let hearer = self.hearer(user, convo);
        hearer.is_some_and(|it| it.has_written || it.is_active || seq <= it.upto)
    }

    /// The first message that he hears by himself.
    pub fn since(&self, user: &str, convo: &str) -> u64 {
        self.hearer(user, convo).map_or(1, |hearer| hearer.since.max(1))
    }

    /// A channel is made, or who writes in it changes: the message says the same as the state.
    pub fn take(&mut self, message: &Message, state: &ChannelState) -> Verdict {
        let convo = &message.convo;
        let body: serde_json::Value =
            serde_json::from_slice(message.body.bytes()).map_err(|error| error.to_string())?;
        let before = self.version(convo);
        let is_good = match body["op"].as_str() {
            Some("create") => message.seq == 1 && before == 0 && state.owner == message.from,
            Some("role") => before > 0 && self.owner(convo) == Some(&*message.from),
            _ => false,
        };
        if !is_good || state.version != before + 1 {
            return Err(format!("{convo} {}: {body} makes {state:?}", message.seq));
        }
        let channel = self.channels.entry(convo.clone()).or_default();
        if before == 0 {
            let owner = Hearer { since: 1, is_active: true, ..Hearer::default() };
            channel.hearers.insert(state.owner.clone(), owner);
        }
        for user in state.admins.iter().chain([&state.owner]) {
            channel.hearers.entry(user.clone()).or_default().has_written = true;
        }
        channel.state = Some(state.clone());
        Ok(())
    }

    /// A subscription began or ended, while the channel stood at `head`.
    pub fn take_subscription(
        &mut self,
        (convo, user): (&ConversationName, &Id),
        row: Subscription,
        subscribers: u64,
        head: u64,
    ) -> Verdict {
        let Some(channel) = self.channels.get_mut(convo) else {
            return Err(format!("{user} subscribes to {convo}, which is no channel"));
        };
        let old = channel.hearers.get(user).copied().unwrap_or_default();
        let begins = row.is_active && !old.is_active;
        let since_is_good = !begins || row.since == head + 1;
        if (row.is_active, row.is_counted) == (old.is_active, old.is_counted) || !since_is_good {
            return Err(format!("{user} of {convo} at {head} goes from {old:?} to {row:?}"));
        }
        let Subscription { since, is_active, is_counted } = row;
        let upto = if is_active { old.upto } else { head };
        let hearer = Hearer { since, is_active, is_counted, upto, ..old };
        channel.hearers.insert(user.clone(), hearer);
        let count = channel.hearers.values().filter(|hearer| hearer.is_counted).count() as u64;
        if count != subscribers {
            return Err(format!("{convo} has {count} subscribers, not {subscribers}"));
        }
        Ok(())
    }

    fn state(&self, convo: &str) -> Option<&ChannelState> {
        self.channels.get(convo)?.state.as_ref()
    }

    fn hearer(&self, user: &str, convo: &str) -> Option<&Hearer> {
        self.channels.get(convo)?.hearers.get(user)
    }
}
