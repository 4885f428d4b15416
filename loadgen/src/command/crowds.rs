//! From flags to the scenarios that have a crowd.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::flags::{
    ChurnFlags, CrowdFlags, HostileFlags, IdleFlags, MillionFlags, SlowFlags, StormFlags,
};
use super::{NO_END, check_rate, check_size, descriptors, run_name, servers};
use crate::chat;
use crate::churn::Churn;
use crate::crowd::CrowdPlan;
use crate::fleet::Clock;
use crate::hostile::Hostile;
use crate::idle::{Idle, Talk};
use crate::messages::SIZE_MIN;
use crate::million::{self, OwnServer, ServerOptions};
use crate::report::Report;
use crate::run::Plan;
use crate::scene;
use crate::slow::{Books, Slow, Writers};
use crate::storm::Storm;

/// Readers that one writer has, and the most writers.
const READERS_EACH: usize = 16;
const WRITERS_MAX: usize = 64;
/// What the kernel keeps for a reader who does not read.
const READER_BUFFER: usize = 16 * 1024;
const WARMUP: Duration = Duration::from_secs(1);
/// How long the last answers are waited for.
const DRAIN_MAX: Duration = Duration::from_secs(20);

pub fn idle(flags: IdleFlags) -> anyhow::Result<Report> {
    let IdleFlags { crowd, rate, quiet, size } = flags;
    let (plan, talk) = prepare(&crowd, rate, size)?;
    let (quiet, window) = (quiet.unwrap_or(crowd.seconds), crowd.seconds);
    scene::play("idle", &plan, servers(&crowd.server_pid)?, Idle { quiet, window, talk })
        .map(|report| with_rate(report, rate))
}

pub fn storm(flags: StormFlags) -> anyhow::Result<Report> {
    let StormFlags { crowd, rate, spread, patience, size } = flags;
    let (mut plan, talk) = prepare(&crowd, rate, size)?;
    plan.spread = spread;
    let storm = Storm { calm: crowd.seconds, patience, talk };
    scene::play("storm", &plan, servers(&crowd.server_pid)?, storm)
        .map(|report| with_rate(report, rate))
}

pub fn churn(flags: ChurnFlags) -> anyhow::Result<Report> {
    let ChurnFlags { crowd, rate, chat_rate, size } = flags;
    check_rate(rate)?;
    let (mut plan, talk) = prepare(&crowd, chat_rate, size)?;
    plan.churn = rate;
    let churn = Churn { window: crowd.seconds, talk };
    scene::play("churn", &plan, servers(&crowd.server_pid)?, churn)
        .map(|report| with_rate(report, chat_rate))
}

pub fn slow(flags: SlowFlags) -> anyhow::Result<Report> {
    let SlowFlags { crowd, rate, chat_rate, calm, patience, size } = flags;
    check_rate(rate)?;
    let (mut plan, talk) = prepare(&crowd, chat_rate, size.max(SIZE_MIN))?;
    let writers = (plan.count / (READERS_EACH + 1)).clamp(1, WRITERS_MAX);
    if plan.count <= writers {
        bail!("--connections must be above {}", crowd.connections - plan.count + writers);
    }
    plan.count -= writers;
    plan.receive_buffer = Some(READER_BUFFER);
    let writers = Writers {
        plan: side_plan(&crowd, plan.clock, writers, 1),
        rate,
        size,
        run: plan.run.clone(),
        reader_count: plan.count,
    };
    let (window, books) = (crowd.seconds, Arc::new(Books::default()));
    let script = Slow { calm, window, patience, talk, writers, books };
    scene::play("slow", &plan, servers(&crowd.server_pid)?, script)
        .map(|report| with_rate(report, chat_rate))
}

pub fn hostile(flags: HostileFlags) -> anyhow::Result<Report> {
    let HostileFlags { crowd, rate, calm, attackers, bound, size } = flags;
    check_rate(rate)?;
    let (plan, talk) = prepare(&crowd, rate, size)?;
    let room = descriptors()?.saturating_sub(crowd.connections as u64) as usize;
    if attackers == 0 || attackers > room {
        bail!("--attackers must be from 1 to {room}: the limit of open files allows no more");
    }
    let hostile = Hostile {
        target: crowd.target.clone(),
        calm,
        window: crowd.seconds,
        attackers,
        talk: talk.context("the rate is above 0")?,
        bound,
        run: plan.run.clone(),
    };
    scene::play("hostile", &plan, servers(&crowd.server_pid)?, hostile)
        .map(|report| with_rate(report, rate))
}

pub fn million(flags: MillionFlags) -> anyhow::Result<Report> {
    let room = descriptors()? as usize;
    let notes = million::prepare_host(flags.connections);
    let shards = flags.shards.unwrap_or_else(|| million::shards(flags.connections, room));
    let server = match flags.target {
        Some(_) => None,
        None => {
            let MillionFlags { aldis, data, .. } = &flags;
            let options = ServerOptions { aldis: aldis.clone(), shards, data: data.clone() };
            Some(OwnServer::start(&options)?)
        }
    };
    let crowd = CrowdFlags {
        target: match &server {
            Some(server) => server.target.clone(),
            None => flags.target.context("there is one or the other")?,
        },
        connections: flags.connections,
        seconds: flags.seconds,
        ramp: flags.ramp,
        window: flags.window,
        path: None,
        beat: None,
        run: None,
        server_pid: server.as_ref().map_or(flags.server_pid, |server| vec![server.pid()]),
        per_ring: None,
        output: flags.output,
    };
    let (plan, talk) = prepare(&crowd, flags.rate, flags.size)?;
    let script = Idle { quiet: flags.quiet, window: flags.seconds, talk };
    let mut report = scene::play("million", &plan, servers(&crowd.server_pid)?, script)?;
    report.notes.extend(notes);
    if let Some(server) = &server {
        report.host.insert("server".to_owned(), server.command.clone());
    }
    Ok(with_rate(report, flags.rate))
}

fn with_rate(mut report: Report, rate: f64) -> Report {
    report.rate_wanted = (rate > 0.0).then_some(rate);
    report
}

/// The crowd, and the users beside it who write to each other at `rate`.
fn prepare(
    flags: &CrowdFlags,
    rate: f64,
    size: usize,
) -> anyhow::Result<(CrowdPlan, Option<Talk>)> {
    check_size(size)?;
    if rate != 0.0 {
        check_rate(rate)?;
    }
    let talking = if rate > 0.0 { Talk::connections(rate) } else { 0 };
    if flags.connections <= talking {
        bail!("--connections must be above {talking}, of which {talking} carry messages");
    }
    let room = descriptors()? as usize;
    let run = flags.run.clone().unwrap_or_else(run_name);
    let clock = Clock(Instant::now());
    let plan = CrowdPlan {
        target: flags.target.clone(),
        clock,
        count: flags.connections - talking,
        thread_count_max: flags.per_ring.unwrap_or(room).clamp(1, room.min(1 << 20)),
        first_position: 0,
        path: flags.path.clone(),
        run: run.clone(),
        window: flags.window.max(1),
        ramp: flags.ramp,
        spread: Duration::ZERO,
        churn: 0.0,
        beat: flags.beat,
        receive_buffer: None,
    };
    let talk = (talking > 0).then(|| Talk {
        plan: side_plan(flags, clock, talking, chat::PAIR),
        rate,
        size,
        run,
    });
    Ok((plan, talk))
}

/// The plan of connections beside the crowd; they send until they are told to stop.
fn side_plan(flags: &CrowdFlags, clock: Clock, connections: usize, group: usize) -> Plan {
    Plan {
        target: flags.target.clone(),
        connections,
        threads: 1,
        warmup: WARMUP,
        window: NO_END,
        drain_max: DRAIN_MAX,
        group,
        clock,
        signals: Arc::default(),
        servers: Vec::new(),
    }
}
