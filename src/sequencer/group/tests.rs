//! Who may change a group, and what a change says.

use super::*;

fn ids(names: &[&str]) -> Vec<Id> {
    names.iter().map(|name| Id::from(*name)).collect()
}

/// A group and its log.
#[derive(Default)]
struct Stage {
    group: Option<Group>,
    seq: u64,
    bodies: Vec<String>,
}

impl Stage {
    fn ask(&mut self, user: &str, change: GroupChange) -> Result<bool, Code> {
        let place = Place { seq: self.seq + 1, lsn: self.seq + 101, fanned_out: 0 };
        let decided = decide(self.group.as_ref(), &user.into(), &change, place);
        let Some(step) = decided.map_err(|(code, _)| code)? else { return Ok(false) };
        self.seq += 1;
        self.bodies.push(step.body);
        self.group.get_or_insert_default().apply(step.version, step.members);
        Ok(true)
    }

    fn add(&mut self, user: &str, members: &[&str]) -> Result<bool, Code> {
        self.ask(user, GroupChange::Add { members: ids(members) })
    }

    fn remove(&mut self, user: &str, members: &[&str]) -> Result<bool, Code> {
        self.ask(user, GroupChange::Remove { members: ids(members) })
    }

    fn role(&mut self, user: &str, members: &[&str], admin: bool) -> Result<bool, Code> {
        self.ask(user, GroupChange::Role { members: ids(members), admin })
    }

    fn state(&self) -> GroupState {
        self.group.as_ref().expect("made").state(&"team".into())
    }
}

fn made(members: &[&str]) -> Stage {
    let mut stage = Stage::default();
    let create = GroupChange::Create { members: ids(members) };
    assert_eq!(stage.ask("alice", create), Ok(true));
    stage
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let mut stage = made(&["bob", "bob", "alice"]);
    assert_eq!(stage.bodies[0], r#"{"op":"create","users":["alice","bob"]}"#);
    assert_eq!(stage.add("alice", &["bob"]), Ok(false));
    assert_eq!(stage.remove("alice", &["nobody"]), Ok(false));
    assert_eq!(stage.role("alice", &["nobody", "alice"], true), Ok(false));
    assert_eq!(stage.role("alice", &["bob"], false), Ok(false));
    assert_eq!(stage.ask("alice", GroupChange::Create { members: ids(&["x"]) }), Ok(false));
    assert_eq!((stage.state().version, stage.seq), (1, 1));
    assert_eq!(stage.add("alice", &["bob", "carol"]), Ok(true));
    assert_eq!(stage.bodies[1], r#"{"op":"add","users":["carol"]}"#);
    assert_eq!(stage.state().version, 2);
}

#[test]
fn only_those_who_may_change_it() {
    let mut stage = made(&["bob", "carol"]);
    for result in [stage.add("bob", &["x"]), stage.remove("bob", &["carol"])] {
        assert_eq!(result, Err(Code::Forbidden));
    }
    assert_eq!(stage.add("eve", &["x"]), Err(Code::NotMember));
    assert_eq!(stage.ask("eve", GroupChange::Info), Err(Code::NotMember));
    assert_eq!(stage.ask("bob", GroupChange::Create { members: vec![] }), Err(Code::Forbidden));
    assert_eq!(stage.role("alice", &["bob"], true), Ok(true));
    assert_eq!(stage.add("bob", &["dave"]), Ok(true));
    assert_eq!(stage.role("bob", &["carol"], true), Err(Code::Forbidden), "the owner only");
    assert_eq!(stage.remove("bob", &["alice"]), Err(Code::Forbidden), "the owner stays");
    assert_eq!(stage.remove("bob", &["carol", "dave"]), Ok(true));
    assert_eq!(stage.ask("carol", GroupChange::Leave), Err(Code::NotMember));
    let mut nothing = Stage::default();
    assert_eq!(nothing.ask("alice", GroupChange::Info), Err(Code::NoSuchConversation));
}

#[test]
fn the_cap_holds_and_nothing_is_changed_beyond_it() {
    let names: Vec<String> = (0..1_023).map(|index| format!("m{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut stage = made(&names[..1_022]);
    assert_eq!(stage.add("alice", &["one", "too many"]), Err(Code::GroupFull));
    assert_eq!(stage.state().members.len(), 1_023);
    assert_eq!(stage.add("alice", &["m0", "one"]), Ok(true));
    assert_eq!(stage.add("alice", &["two"]), Err(Code::GroupFull));
    assert_eq!(stage.remove("alice", &["m7"]), Ok(true));
    assert_eq!(stage.add("alice", &["two"]), Ok(true));
    let create = GroupChange::Create { members: ids(&[&names[..], &["x"]].concat()) };
    assert_eq!(Stage::default().ask("alice", create), Err(Code::GroupFull));
}

#[test]
fn the_longest_standing_admin_and_then_member_follows_the_owner() {
    let mut stage = made(&["bob", "carol", "dave"]);
    stage.role("alice", &["dave"], true).expect("the owner");
    stage.role("alice", &["carol"], true).expect("the owner");
    stage.ask("alice", GroupChange::Leave).expect("a member");
    assert_eq!(stage.bodies[3], r#"{"op":"leave","owner":"dave","users":["alice"]}"#);
    assert_eq!(stage.state().owner.as_deref(), Some("dave"));
    stage.ask("dave", GroupChange::Leave).expect("a member");
    assert_eq!(stage.state().owner.as_deref(), Some("carol"));
    stage.add("carol", &["alice"]).expect("the owner");
    stage.ask("carol", GroupChange::Leave).expect("a member");
    assert_eq!(stage.state().owner.as_deref(), Some("bob"));
    stage.ask("bob", GroupChange::Leave).expect("a member");
    stage.ask("alice", GroupChange::Leave).expect("a member");
    let state = stage.state();
    assert_eq!((state.owner, state.members.len()), (None, 0));
    let again = GroupChange::Create { members: vec![] };
    assert_eq!(stage.ask("alice", again), Err(Code::Forbidden));
}

#[test]
fn the_audience_is_that_of_each_seq() {
    let mut stage = made(&["bob"]);
    stage.remove("alice", &["bob"]).expect("2");
    stage.seq += 1;
    stage.add("alice", &["bob", "carol"]).expect("4");
    let group = stage.group.as_mut().expect("made");
    assert_eq!(*group.audience(1), ids(&["alice", "bob"]));
    assert_eq!(*group.audience(2), ids(&["alice", "bob"]), "he hears that he is removed");
    assert_eq!(*group.audience(3), ids(&["alice"]));
    assert_eq!(*group.audience(4), ids(&["alice", "bob", "carol"]));
    assert_eq!(*group.audience(9), ids(&["alice", "bob", "carol"]));
}

#[test]
fn a_stay_is_kept_as_long_as_fan_out_may_look_back_to_it() {
    let mut stage = made(&["bob"]);
    let mut stays_after = |fanned_out| {
        stage.remove("alice", &["bob"]).expect("a member");
        let place = Place { seq: stage.seq + 1, lsn: stage.seq + 101, fanned_out };
        let change = GroupChange::Add { members: ids(&["bob"]) };
        let step = decide(stage.group.as_ref(), &"alice".into(), &change, place);
        let step = step.expect("allowed").expect("a change");
        let count = step.members[0].stays.len();
        stage.seq += 1;
        stage.group.as_mut().expect("made").apply(step.version, step.members);
        count
    };
    assert_eq!([stays_after(0), stays_after(0), stays_after(u64::MAX)], [2, 3, 1]);
}
