//! Many listeners of one channel, without anything around them.

use bytes::Bytes;

use super::*;
use crate::clock::Now;
use crate::link::LinkFull;
use crate::link::record::{Body, Subscription};
use crate::link::wire::Wire;
use crate::sequencer::budget::Budget;
use crate::sequencer::limits::{LimitOptions, Rate};
use crate::sequencer::user::User;

/// What was pushed: by the slot of each connection, the seqs.
#[derive(Default)]
struct Heard {
    seqs: BTreeMap<u32, Vec<u64>>,
    count: usize,
    is_full: bool,
}

impl Outlet for Heard {
    fn submit(&mut self, _: PeerId, entry: Vec<u8>) -> Result<u64, LinkFull> {
        let said = ToEdge::from_bytes(entry.into()).expect("it encodes what it says");
        let ToEdge::Deliver { message, targets } = said else { panic!("only pushes") };
        for target in targets {
            self.seqs.entry(target.address.slot).or_default().push(message.seq);
            self.count += 1;
        }
        Ok(1)
    }

    fn has_room(&self, _: PeerId) -> bool {
        !self.is_full
    }

    fn answered(&mut self, _: PeerId, _: u64) {}
}

fn name(slot: u32) -> Id {
    format!("user{slot}").as_str().into()
}

/// A sequencer with so many users who hear the channel `news`, a session each.
fn crowd(count: u32, rate: Option<Rate>) -> Sequencer {
    let mut sequencer = Sequencer::new(1, PeerId(0), Budget::default());
    sequencer.set_limits(LimitOptions { channel_pushes: rate, ..LimitOptions::default() });
    let event = crate::link::LinkEvent::Began {
        peer: PeerId(1),
        name: "edge".into(),
        incarnation: 1,
        durable_seen: 0,
    };
    sequencer.handle(Now::default(), event, &mut Heard::default());
    for slot in 0..count {
        let address = Address { incarnation: 1, slot, generation: 1 };
        let number = SessionNumber { epoch: 1, counter: slot.into() };
        let mut user = User { loaded: true, ..User::default() };
        let device = user.devices.entry("phone".into()).or_default();
        device.session = Some(Box::new(Session::new(PeerId(1), address, number, false, 1)));
        let row = Subscription { since: 2, is_active: true, is_counted: true };
        user.channels.insert("news".into(), row);
        sequencer.users.insert(name(slot), user);
        sequencer.listen(&name(slot), &"news".into(), 1);
    }
    sequencer
}

fn offer(sequencer: &mut Sequencer, seq: u64) {
    let body = Body::Text { text: Bytes::from_static(b"text") };
    let (from, device, id) = ("alice".into(), "pad".into(), "id".into());
    let message = Message { convo: "news".into(), seq, mid: seq, ts: 1, from, device, id, body };
    sequencer.fan_to_channel(Rc::new(message), true);
}

fn at(sequencer: &mut Sequencer, now_ms: u64) {
    sequencer.now = Now { monotonic_us: now_ms * 1_000, unix_ms: now_ms };
}

#[test]
fn many_hear_in_pieces_each_once_and_in_order() {
    let mut sequencer = crowd(40_000, None);
    let mut heard = Heard::default();
    offer(&mut sequencer, 2);
    offer(&mut sequencer, 3);
    let mut turns = 0;
    while sequencer.channels.wait_us() == Some(1) {
        let before = heard.count;
        sequencer.push_channels(&mut heard);
        assert!(heard.count - before <= LOOK_COUNT_MAX, "a turn is bounded");
        // Somebody leaves between two pieces: others are neither left out nor reached twice.
        let leaver = name(39_000 - turns);
        sequencer.stop_listening(&leaver, &"news".into());
        turns += 1;
    }
    assert!(turns >= 5, "{turns}");
    assert_eq!(sequencer.channels.listener_count(), 40_000 - turns as usize);
    for slot in (0..38_000).chain(39_001..40_000) {
        assert_eq!(heard.seqs[&slot], [2, 3], "slot {slot}");
    }
}

#[test]
fn nothing_is_pushed_while_much_is_on_its_way() {
    let mut sequencer = crowd(10, None);
    let mut heard = Heard { is_full: true, ..Heard::default() };
    offer(&mut sequencer, 2);
    sequencer.push_channels(&mut heard);
    assert_eq!((heard.count, sequencer.channels.wait_us()), (0, Some(CROWDED_US)));
    heard.is_full = false;
    sequencer.push_channels(&mut heard);
    assert_eq!((heard.count, sequencer.channels.wait_us()), (10, None));
}

#[test]
fn the_rate_leaves_out_all_but_the_last() {
    let mut sequencer = crowd(10, Some(Rate { per_second: 10, burst: 10 }));
    let mut heard = Heard::default();
    at(&mut sequencer, 1_000);
    for seq in 2..=6 {
        offer(&mut sequencer, seq);
        sequencer.push_channels(&mut heard);
    }
    assert_eq!(heard.seqs[&0], [2]);
    assert_eq!(sequencer.counters.channel_pushes_left_out_total, 3 * 10, "3, 4 and 5");
    assert_eq!(sequencer.channels.wait_us(), Some(LATE_US));
    at(&mut sequencer, 1_999);
    sequencer.push_channels(&mut heard);
    assert_eq!(heard.seqs[&0], [2]);
    at(&mut sequencer, 2_000);
    sequencer.push_channels(&mut heard);
    assert_eq!((&heard.seqs[&0][..], heard.count), (&[2, 6][..], 20));
    assert_eq!(sequencer.channels.wait_us(), None);
}

#[test]
fn who_is_held_hears_nothing_until_he_has_turned_live() {
    let mut sequencer = crowd(2, None);
    let mut heard = Heard::default();
    let (user, device) = (name(0), Id::from("phone"));
    let held = sequencer.hold_behind(&user, &device);
    assert_eq!(held, [("news".into(), 1)]);
    assert_eq!(sequencer.hold_behind(&user, &device), [], "it is held already");
    offer(&mut sequencer, 2);
    sequencer.push_channels(&mut heard);
    assert_eq!((heard.seqs.get(&0), &heard.seqs[&1][..]), (None, &[2][..]));
    sequencer.turn_live(&user, &device, &"news".into(), 2);
    offer(&mut sequencer, 2);
    offer(&mut sequencer, 3);
    sequencer.push_channels(&mut heard);
    assert_eq!((&heard.seqs[&0][..], &heard.seqs[&1][..]), (&[3][..], &[2, 3][..]));
}

#[test]
fn an_edge_that_is_gone_takes_its_listeners() {
    let mut sequencer = crowd(5, None);
    sequencer.channels.drop_peer(PeerId(2));
    assert_eq!(sequencer.channels.listener_count(), 5);
    sequencer.channels.drop_peer(PeerId(1));
    assert_eq!((sequencer.channels.listener_count(), sequencer.channels.audiences.len()), (0, 0));
}
