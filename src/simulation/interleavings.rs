//! The interleavings that the rules of the design close, one by one, in the whole system. The
//! log's own (a torn commit at every sector, recycled segments) are in `store/tests/recovery.rs`
//! too, at the level of the disk.

use super::kernel::SimOptions;
use super::world::device::{Around, Device, Leaving};
use super::world::ledger::Verdict;
use super::world::trace::Trace;
use super::world::{Role, World, WorldOptions};
use crate::sequencer::budget::Budget;

const CONVO: &str = "dm:alice:bob";
/// Devices of [`chat`], in the order in which they connected: so they have the edge's slots.
const BOB: usize = 0;
const ALICE: usize = 1;
/// Virtual microseconds for anything to happen.
const PATIENCE_US: u64 = 30_000_000;

/// Bob and alice, connected, with nothing under way.
fn chat(seed: u64) -> Result<World, String> {
    let options = WorldOptions {
        network: SimOptions::default(),
        segment_size: 128 * 1024,
        budget: Budget::default(),
        dead_after_ms: crate::sequencer::dead_letters::AGE_MS_DEFAULT,
    };
    let mut world = World::new(seed, options, Trace::new(200));
    world.start_all()?;
    for user in ["bob", "alice"] {
        let index = world.add_device(user, "phone");
        connect(&mut world, index)?;
    }
    world.pass_for(3_000_000)?;
    Ok(world)
}

fn connect(world: &mut World, index: usize) -> Verdict {
    act(world, index, |device, around| device.connect(false, around))?;
    world.pass_until("a device is synced", PATIENCE_US, |world| world.devices[index].is_synced())
}

fn act(world: &mut World, index: usize, act: impl FnOnce(&mut Device, &mut Around)) -> Verdict {
    world.with_device(index, |device, around| {
        act(device, around);
        Ok(())
    })
}

fn alice_sends(world: &mut World) -> Verdict {
    act(world, ALICE, |device, around| device.send("bob", 10, around))
}

/// Everyone is connected and has everything, and `count` messages were ever accepted.
fn ends_well(world: &mut World, count: u64) -> Verdict {
    world.pass_until("everything is told", PATIENCE_US, |world| {
        world.devices.iter().all(|device| {
            device.is_synced()
                && device.unanswered_count() == 0
                && device.missing(&world.ledger).is_none()
        })
    })?;
    match world.ledger.head(CONVO) {
        head if head == count => Ok(()),
        head => Err(format!("{head} messages were accepted instead of {count}")),
    }
}

fn reconnect_all(world: &mut World) -> Verdict {
    (0..world.devices.len()).try_for_each(|index| connect(world, index))
}

#[track_caller]
fn holds(scenario: impl Fn(u64) -> Verdict) {
    for seed in 0..16 {
        if let Err(why) = scenario(seed) {
            panic!("seed {seed}: {why}");
        }
    }
}

/// A message is on bob's old connection, unread; he is back before the grace is over, and before
/// the edge knows that he left.
#[test]
fn quick_reconnect_within_the_grace() {
    holds(|seed| {
        let mut world = chat(seed)?;
        world.devices[BOB].stop_reading(u64::MAX);
        alice_sends(&mut world)?;
        world.pass_until("it is durable", PATIENCE_US, |world| world.ledger.head(CONVO) == 1)?;
        world.pass_for(2_000 * (1 + seed))?;
        act(&mut world, BOB, |device, around| device.leave(Leaving::Silent, around))?;
        alice_sends(&mut world)?;
        connect(&mut world, BOB)?;
        ends_well(&mut world, 2)
    });
}

/// The store dies after the sync and before it could say so.
#[test]
fn batch_durable_with_its_answer_lost() {
    holds(|seed| {
        let mut world = chat(seed)?;
        alice_sends(&mut world)?;
        world.pass_until("it is durable", PATIENCE_US, |world| world.ledger.head(CONVO) == 1)?;
        if world.devices[ALICE].unanswered_count() == 0 {
            return Err("the answer was not lost".to_owned());
        }
        world.crash_store();
        world.pass_for(10_000 * seed)?;
        world.start_store()?;
        ends_well(&mut world, 1)?;
        let (epoch, count) = (world.ledger.epoch(), world.sequencers.len());
        if (epoch, count) == (1, 1) { Ok(()) } else { Err(format!("epoch {epoch}, {count} lives")) }
    });
}

/// A sequencer sleeps, a second one takes over, and the first wakes up with a send in its hands.
#[test]
fn paused_old_sequencer_is_fenced() {
    holds(|seed| {
        let mut world = chat(seed)?;
        world.pause(Role::Sequencer, 500_000 + 200_000 * seed);
        alice_sends(&mut world)?;
        world.start_sequencer();
        ends_well(&mut world, 1)?;
        world
            .pass_until("the old one is gone", PATIENCE_US, |world| world.sequencers.len() == 1)?;
        alice_sends(&mut world)?;
        ends_well(&mut world, 2)?;
        if world.ledger.epoch() == 2 { Ok(()) } else { Err("no second epoch".to_owned()) }
    });
}

/// The edge dies with a message on its way to bob; its next life gives bob's slot to carol.
#[test]
fn edge_restarted_with_the_same_slots() {
    holds(|seed| {
        let mut world = chat(seed)?;
        alice_sends(&mut world)?;
        world.pass_until("it is durable", PATIENCE_US, |world| world.ledger.head(CONVO) == 1)?;
        world.crash_edge();
        world.start_edge();
        let carol = world.add_device("carol", "phone");
        connect(&mut world, carol)?;
        connect(&mut world, ALICE)?;
        connect(&mut world, BOB)?;
        ends_well(&mut world, 1)
    });
}

/// The power goes while a commit is being written: what of it is there depends on the seed.
#[test]
fn torn_commit() {
    holds(|seed| {
        let mut world = chat(seed)?;
        world.disk_is_held = true;
        alice_sends(&mut world)?;
        world.pass_until("a write is under way", PATIENCE_US, |world| world.disk.is_busy())?;
        world.disk_is_held = false;
        world.cut_power();
        world.start_all()?;
        reconnect_all(&mut world)?;
        ends_well(&mut world, 1)
    });
}

/// Durable records follow a block that cannot be read: nobody may take that for the end of the log.
#[test]
fn bad_sector_in_the_middle() {
    holds(|seed| {
        let mut world = chat(seed)?;
        for _ in 0..4 {
            alice_sends(&mut world)?;
            world.pass_for(100_000)?;
        }
        ends_well(&mut world, 4)?;
        world.crash_store();
        world.index.crash(0);
        let first = world.disk.numbers()[0];
        world.disk.corrupt(first, 2 * 4096 + 40);
        match world.start_store() {
            Err(why) if why.contains("the log is corrupt") => Ok(()),
            other => Err(format!("it starts on a broken log: {other:?}")),
        }
    });
}
