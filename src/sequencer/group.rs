//! A group's membership, and what may change it: plain data, derived from the log alone.
//!
//! A change is decided here and takes effect when its record is durable. Until then nothing else of
//! the conversation is looked at, so there is no speculative membership: who is a member, everybody
//! may know. A row keeps each stay that fan-out may still have to look back to.

use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use serde_json::json;

use crate::limits::GROUP_MEMBER_COUNT_MAX;
use crate::link::message::{Code, GroupChange, GroupState};
use crate::link::record::{ConversationName, GroupRole, Id, Member, Stay};

/// Why a change is not made.
pub type Refused = (Code, &'static str);

const STRANGER: Refused = (Code::NotMember, "not a member of it");
const NO_GROUP: Refused = (Code::NoSuchConversation, "no such conversation");
const NOT_ALLOWED: Refused = (Code::Forbidden, "the owner and admins only");

/// A change on its way into the log.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub version: u64,
    /// Whole rows.
    pub members: Vec<Member>,
    /// Of the system message.
    pub body: String,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Of the system message.
    pub seq: u64,
    pub lsn: u64,
    /// Fan-out never looks back beyond this position.
    pub fanned_out: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Group {
    pub version: u64,
    /// Everybody who is or was in it.
    members: BTreeMap<Id, Member>,
    present_count: usize,
    /// The last message that changed it: everybody present hears what is above.
    changed_at: u64,
    /// Everybody present, once asked for.
    present: Option<Rc<[Id]>>,
}

impl Group {
    pub fn new(version: u64, members: Vec<Member>) -> Group {
        let mut group = Group::default();
        group.apply(version, members);
        group
    }

    /// Rows that are durable.
    pub fn apply(&mut self, version: u64, members: Vec<Member>) {
        self.version = version;
        for member in members {
            let stay = member.last_stay();
            self.changed_at = self.changed_at.max(stay.joined).max(stay.left);
            self.present_count += usize::from(member.is_in());
            if let Some(old) = self.members.insert(member.user.clone(), member) {
                self.present_count -= usize::from(old.is_in());
            }
        }
        self.present = None;
    }

    pub fn member(&self, user: &str) -> Option<&Member> {
        self.members.get(user)
    }

    pub fn is_in(&self, user: &str) -> bool {
        self.members.get(user).is_some_and(Member::is_in)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Everybody who is in it, by name.
    pub fn present(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.is_in())
    }

    /// Whom the message `seq` is for.
    pub fn audience(&mut self, seq: u64) -> Rc<[Id]> {
        if seq <= self.changed_at {
            let then = self.members.values().filter(|member| member.was_in_at(seq));
            return then.map(|member| member.user.clone()).collect();
        }
        let members = &self.members;
        let present = self.present.get_or_insert_with(|| {
            let present = members.values().filter(|member| member.is_in());
            present.map(|member| member.user.clone()).collect()
        });
        present.clone()
    }

    /// As its members see it.
    pub fn state(&self, convo: &ConversationName) -> GroupState {
        let with = |role: GroupRole| {
            let found = self.present().filter(move |member| member.role == role);
            found.map(|member| member.user.clone())
        };
        GroupState {
            convo: convo.clone(),
            owner: with(GroupRole::Owner).next(),
            admins: with(GroupRole::Admin).collect(),
            members: self.present().map(|member| member.user.clone()).collect(),
            version: self.version,
        }
    }

    fn role(&self, user: &str) -> Option<GroupRole> {
        self.members.get(user).filter(|member| member.is_in()).map(|member| member.role)
    }

    /// Those of `users` who are in it, each once.
    fn present_of(&self, users: &[Id]) -> Vec<&Member> {
        let found = distinct(users).filter_map(|user| self.members.get(user));
        found.filter(|member| member.is_in()).collect()
    }

    fn add(&self, users: &[Id], place: Place) -> Result<Option<Step>, Refused> {
        let new: Vec<&str> = distinct(users).filter(|user| self.role(user).is_none()).collect();
        if self.present_count + new.len() > GROUP_MEMBER_COUNT_MAX {
            return Err((Code::GroupFull, "the group would have too many members"));
        }
        let rows = (0..).zip(&new).map(|(order, user)| {
            let old = self.members.get(*user);
            joined(user, old, self.version + 1, order, place)
        });
        Ok(self.step(rows.collect(), json!({"op": "add", "users": new})))
    }

    fn remove(&self, users: &[Id], place: Place) -> Result<Option<Step>, Refused> {
        let gone = self.present_of(users);
        if gone.iter().any(|member| member.role == GroupRole::Owner) {
            return Err((Code::Forbidden, "the owner leaves by himself only"));
        }
        let names: Vec<&str> = gone.iter().map(|member| &*member.user).collect();
        let body = json!({"op": "remove", "users": names});
        let rows = gone.iter().map(|member| left(member, self.version + 1, place));
        Ok(self.step(rows.collect(), body))
    }

    fn assign(&self, users: &[Id], admin: bool, place: Place) -> Option<Step> {
        let (from, to, name) = match admin {
            true => (GroupRole::Member, GroupRole::Admin, "admin"),
            false => (GroupRole::Admin, GroupRole::Member, "member"),
        };
        let mut changed = self.present_of(users);
        changed.retain(|member| member.role == from);
        let names: Vec<&str> = changed.iter().map(|member| &*member.user).collect();
        let body = json!({"op": "role", "users": names, "role": name});
        let admin_since = if admin { place.seq } else { 0 };
        let version = self.version + 1;
        let rows = changed.into_iter().cloned();
        let rows = rows.map(|old| Member { role: to, admin_since, version, ..old });
        self.step(rows.collect(), body)
    }

    fn leave(&self, leaver: &Member, place: Place) -> Option<Step> {
        let version = self.version + 1;
        let mut rows = vec![left(leaver, version, place)];
        let mut body = json!({"op": "leave", "users": [&*leaver.user]});
        if leaver.role == GroupRole::Owner
            && let Some(heir) = self.heir()
        {
            body["owner"] = json!(&*heir.user);
            let role = GroupRole::Owner;
            rows.push(Member { role, admin_since: 0, version, ..heir.clone() });
        }
        self.step(rows, body)
    }

    /// The longest-standing admin, else member.
    fn heir(&self) -> Option<&Member> {
        let others = self.present().filter(|member| member.role != GroupRole::Owner);
        others.min_by_key(|member| {
            let standing = (member.last_stay().joined, member.place);
            (member.role != GroupRole::Admin, member.admin_since, standing)
        })
    }

    fn step(&self, members: Vec<Member>, body: serde_json::Value) -> Option<Step> {
        let version = self.version + 1;
        (!members.is_empty()).then(|| Step { version, members, body: body.to_string() })
    }
}

/// What `change` by `user` does to the group, if there is one; `None`: nothing.
pub fn decide(
    group: Option<&Group>,
    user: &Id,
    change: &GroupChange,
    place: Place,
) -> Result<Option<Step>, Refused> {
    let Some(group) = group else {
        return match change {
            GroupChange::Create { members } => create(user, members, place).map(Some),
            _ => Err(NO_GROUP),
        };
    };
    let role = group.role(user);
    let member = group.members.get(user).filter(|member| member.is_in());
    let governs = matches!(role, Some(GroupRole::Owner | GroupRole::Admin));
    match (change, member) {
        (GroupChange::Create { .. }, _) if role == Some(GroupRole::Owner) => Ok(None),
        (GroupChange::Create { .. }, _) => Err((Code::Forbidden, "there is such a group already")),
        (_, None) => Err(STRANGER),
        (GroupChange::Info, _) => Ok(None),
        (GroupChange::Leave, Some(leaver)) => Ok(group.leave(leaver, place)),
        (GroupChange::Role { .. }, _) if role != Some(GroupRole::Owner) => {
            Err((Code::Forbidden, "the owner only"))
        }
        (GroupChange::Role { members, admin }, _) => Ok(group.assign(members, *admin, place)),
        (GroupChange::Add { .. } | GroupChange::Remove { .. }, _) if !governs => Err(NOT_ALLOWED),
        (GroupChange::Add { members }, _) => group.add(members, place),
        (GroupChange::Remove { members }, _) => group.remove(members, place),
    }
}

fn create(owner: &Id, members: &[Id], place: Place) -> Result<Step, Refused> {
    let group = Group::default();
    let mut users = vec![owner.clone()];
    users.extend(members.iter().cloned());
    let step = group.add(&users, place)?.expect("the owner is new");
    let names: Vec<&str> = step.members.iter().map(|member| &*member.user).collect();
    let body = json!({"op": "create", "users": names}).to_string();
    let mut members = step.members;
    members[0].role = GroupRole::Owner;
    Ok(Step { members, body, ..step })
}

fn joined(user: &str, old: Option<&Member>, version: u64, order: u32, place: Place) -> Member {
    let needed = |stay: &&Stay| stay.left_lsn > place.fanned_out;
    let stays = old.into_iter().flat_map(|old| &old.stays).filter(needed).copied();
    let stay = Stay { joined: place.seq, left: 0, left_lsn: 0 };
    Member {
        user: user.into(),
        version,
        role: GroupRole::Member,
        admin_since: 0,
        place: order,
        stays: stays.chain([stay]).collect(),
    }
}

fn left(old: &Member, version: u64, place: Place) -> Member {
    let mut member = Member { role: GroupRole::Member, admin_since: 0, version, ..old.clone() };
    if let Some(stay) = member.stays.last_mut() {
        (stay.left, stay.left_lsn) = (place.seq, place.lsn);
    }
    member
}

fn distinct(users: &[Id]) -> impl Iterator<Item = &str> {
    let mut seen = HashSet::new();
    users.iter().map(|user| &**user).filter(move |user| seen.insert(*user))
}

#[cfg(test)]
mod tests;
