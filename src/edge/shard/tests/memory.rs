//! The ledger over a shard: it is what a full count finds, whatever happens; and what the grades
//! do.

use proptest::prelude::*;

use super::*;
use crate::edge::ledger::{Class, Grades, Pressure};

const BUDGET: u64 = 1 << 20;

fn stage(connection_count_max: usize) -> Stage {
    Stage::with(ShardOptions {
        connection_count_max,
        message_size_max: 100_000,
        queue_size_max: 300_000,
        grades: Grades::new(BUDGET),
        ..ShardOptions::default()
    })
}

impl Stage {
    /// The others of the process hold so much that this is used, by this shard's own count.
    fn use_percent(&mut self, percent: u64) {
        let ledger = self.shard.ledger();
        let own = ledger.counted() + ledger.size(Class::Sockets);
        ledger.hear((BUDGET * percent / 100).saturating_sub(own as u64), Pressure::None);
    }

    fn size(&mut self, class: Class) -> usize {
        self.shard.ledger().size(class)
    }
}

#[test]
fn nobody_is_let_in_without_memory_and_who_is_in_stays() {
    let mut stage = stage(10);
    stage.open(7);
    stage.use_percent(91);
    stage.accept(8);
    let answer = stage.sent_text();
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: "),
        "{answer}"
    );
    assert!(
        answer.ends_with("{\"code\":\"full\",\"message\":\"this server is full\"}"),
        "{answer}"
    );
    assert_eq!(stage.shard.counters().refused, [0, 0, 0, 1]);
    stage.arrive(7, &client_frame(Opcode::Text, b"still here"));
    assert_eq!(stage.sent(), server_frame(Opcode::Text, b"still here"));
    stage.use_percent(50);
    stage.open(9);
}

#[test]
fn spares_go_and_what_is_too_large_shrinks() {
    let mut stage = stage(10);
    stage.open(7);
    stage.arrive(7, &client_frame(Opcode::Binary, &[1; 3_000]));
    assert!(stage.size(Class::Spares) > 0, "kept for the next one");
    stage.ring().holds_sends = true;
    stage.arrive(7, &client_frame(Opcode::Binary, &[1; 100]));
    for _ in 0..9 {
        stage.arrive(7, &client_frame(Opcode::Binary, &[1; 5_000]));
    }
    let mut cut = client_frame(Opcode::Binary, &[2; 90_000]);
    cut.truncate(40_000);
    stage.arrive(7, &cut);
    let mut rest = client_frame(Opcode::Binary, &[2; 90_000]).split_off(40_000);
    rest.truncate(10_000);
    stage.arrive(7, &rest);
    let before = (stage.size(Class::Queues), stage.size(Class::Frames));
    assert!(before.0 > 60_000 && before.1 > 70_000, "doubled as they grew: {before:?}");
    stage.shard.ledger().hear(0, Pressure::Shrink);
    stage.settle();
    let after = (stage.size(Class::Queues), stage.size(Class::Frames));
    assert!((45_000..50_000).contains(&after.0), "{after:?}");
    assert!((50_000..50_500).contains(&after.1), "{after:?}");
    assert_eq!(stage.size(Class::Spares), 0);
    stage.ring().let_go();
    stage.settle();
    assert_eq!(stage.size(Class::Spares), 0, "none are kept");
    assert_eq!(stage.sent().len(), 3_004 + 102 + 9 * 5_004, "and nothing was lost");
}

#[test]
fn who_makes_it_hold_more_than_there_is_is_told_to_come_later() {
    let mut stage = stage(10);
    stage.open(7);
    stage.open(8);
    for socket in 11..15 {
        stage.accept(socket);
    }
    stage.use_percent(100);
    stage.arrive(8, &client_frame(Opcode::Text, b"whole"));
    assert_eq!(stage.sent(), server_frame(Opcode::Text, b"whole"));
    stage.arrive(7, &client_frame(Opcode::Binary, &[2; 90_000])[..40_000]);
    assert_eq!(stage.sent(), server_frame(Opcode::Close, &close_payload(1013, "overload")));
    assert_eq!(stage.told(), ["closed 0 Memory"]);
    stage.closed();
    for socket in 11..14 {
        stage.arrive(socket, &[b"GET /", &[b'a'; 6_000][..]].concat());
    }
    assert_eq!(stage.closed(), [], "a little is always possible");
    stage.arrive(14, &[b"GET /", &[b'a'; 6_000][..]].concat());
    assert_eq!(stage.closed(), [(Socket::Direct(14), true)]);
    assert_eq!(stage.shard.counters().cut_for_memory, 2);
    assert!(stage.size(Class::Requests) < 19_000);
}

#[test]
fn who_takes_nothing_is_cut_early_when_all_is_used_up() {
    let mut stage = stage(10);
    stage.open(7);
    stage.ring().holds_sends = true;
    stage.arrive(7, &client_frame(Opcode::Text, b"hello"));
    stage.use_percent(99);
    stage.pass_ms(5_000);
    assert_eq!(stage.told(), [""; 0]);
    stage.use_percent(101);
    stage.pass_ms(1_500);
    assert_eq!(stage.told(), ["closed 0 Slow"]);
}

#[test]
fn an_empty_shard_holds_what_it_keeps_for_the_next_alone() {
    let mut stage = stage(10);
    for _ in 0..3 {
        for socket in 20..30 {
            stage.accept(socket);
            stage.arrive(socket, UPGRADE);
            stage.arrive(socket, &client_frame(Opcode::Binary, &[0; 9_000])[..5_000]);
        }
        for socket in 20..30 {
            stage.end_of_stream(socket);
        }
        assert_eq!(stage.shard.connection_count(), 0);
        let held = [Class::Queues, Class::Frames, Class::Requests, Class::Sockets];
        assert_eq!(held.map(|class| stage.size(class)), [0; 4]);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Accept,
    Ask { who: usize, cut: usize },
    Say { who: usize, size: usize, cut: usize },
    Ping { who: usize },
    Leave { who: usize },
    Hold,
    LetGo,
    Use { percent: u64 },
    Pass { time_ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0usize..6;
    prop_oneof![
        2 => Just(Step::Accept),
        3 => (who.clone(), 1usize..400).prop_map(|(who, cut)| Step::Ask { who, cut }),
        6 => (who.clone(), 0usize..60_000, 1usize..70_000)
            .prop_map(|(who, size, cut)| Step::Say { who, size, cut }),
        1 => who.clone().prop_map(|who| Step::Ping { who }),
        1 => who.prop_map(|who| Step::Leave { who }),
        1 => Just(Step::Hold),
        1 => Just(Step::LetGo),
        1 => (0u64..110).prop_map(|percent| Step::Use { percent }),
        1 => (1u64..20_000).prop_map(|time_ms| Step::Pass { time_ms }),
    ]
}

/// The sockets that are there, by their numbers, and what each has yet to send of a frame.
struct Crowd {
    stage: Stage,
    sockets: Vec<(u32, Vec<u8>)>,
    socket_last: u32,
}

impl Crowd {
    fn take(&mut self, step: Step) {
        match step {
            Step::Accept => {
                self.socket_last += 1;
                self.stage.accept(self.socket_last);
                self.sockets.push((self.socket_last, UPGRADE.to_vec()));
            }
            Step::Ask { who, cut } => self.bring(who, cut, &[]),
            Step::Say { who, size, cut } => {
                self.bring(who, cut, &client_frame(Opcode::Binary, &vec![7; size]));
            }
            Step::Ping { who } => self.bring(who, usize::MAX, &client_frame(Opcode::Ping, b"?")),
            Step::Leave { who } => {
                if let Some((socket, _)) = self.sockets.get(who).cloned() {
                    self.stage.end_of_stream(socket);
                }
            }
            Step::Hold => self.stage.ring().holds_sends = true,
            Step::LetGo => self.stage.ring().let_go(),
            Step::Use { percent } => self.stage.use_percent(percent),
            Step::Pass { time_ms } => self.stage.pass_ms(time_ms),
        }
        self.stage.settle();
        let closed = self.stage.closed();
        let is_open = |socket: u32| !closed.iter().any(|(it, _)| *it == Socket::Direct(socket));
        self.sockets.retain(|(socket, _)| is_open(*socket));
    }

    /// So many bytes of what this one has yet to send arrive; then a frame is added to that.
    fn bring(&mut self, who: usize, cut: usize, frame: &[u8]) {
        let Some((socket, unsent)) = self.sockets.get_mut(who) else {
            return;
        };
        let bytes: Vec<u8> = unsent.drain(..cut.min(unsent.len())).collect();
        unsent.extend_from_slice(frame);
        let socket = *socket;
        if !bytes.is_empty() {
            self.stage.arrive(socket, &bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// `settle` compares with the naive count at the end of every turn.
    #[test]
    fn the_ledger_is_what_a_full_count_finds(
        deflate in any::<bool>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut stage = Stage::with(ShardOptions {
            connection_count_max: 5,
            message_size_max: 100_000,
            queue_size_max: 300_000,
            grades: Grades::new(BUDGET),
            deflate,
            ..ShardOptions::default()
        });
        stage.settle();
        let mut crowd = Crowd { stage, sockets: Vec::new(), socket_last: 10 };
        for step in steps {
            crowd.take(step);
        }
        let counters = crowd.stage.shard.counters();
        prop_assert!(counters.accepted + counters.refused.iter().sum::<u64>() >= counters.opened);
    }
}
