//! A store on a simulated disk, and a sequencer that asks it one thing at a time.

use bytes::Bytes;

use crate::clock::Now;
use crate::link::message::{FromStore, ToStore};
use crate::link::record::{Body, Message, Record};
use crate::link::wire::Wire;
use crate::link::{LinkEvent, LinkFull, Outlet, PeerId};
use crate::simulation::disk::SimDisk;
use crate::store::index::MemoryIndex;
use crate::store::log::LogOptions;
use crate::store::log_format::LogId;
use crate::store::reader::InlineIndex;
use crate::store::{Problem, Store, StoreFault, open_on};

pub const PEER: PeerId = PeerId(1);
pub const SEGMENT_SIZE: u64 = 8 * 4096;

pub type SimStore = Store<SimDisk, InlineIndex<MemoryIndex, SimDisk>>;

/// Records what the store says.
#[derive(Default)]
pub struct Recorder {
    pub answers: Vec<FromStore>,
    pub answered: Vec<u64>,
    pub is_full: bool,
}

impl Outlet for Recorder {
    fn submit(&mut self, _: PeerId, entry: Vec<u8>) -> Result<u64, LinkFull> {
        if self.is_full {
            return Err(LinkFull);
        }
        let answer = FromStore::from_bytes(entry.into()).expect("the store encodes what it says");
        self.answers.push(answer);
        Ok(self.answers.len() as u64)
    }

    fn answered(&mut self, _: PeerId, number: u64) {
        self.answered.push(number);
    }
}

pub struct Harness {
    pub disk: SimDisk,
    pub index: MemoryIndex,
    pub store: SimStore,
    pub outlet: Recorder,
    pub now: Now,
    pub number: u64,
}

pub fn options(life: u64) -> LogOptions {
    let new_log_id = LogId { high: 7, low: life };
    LogOptions { segment_size: SEGMENT_SIZE, incarnation: life, new_log_id }
}

pub fn open(disk: &SimDisk, index: &MemoryIndex, life: u64) -> Result<SimStore, StoreFault> {
    let worker = |reader| Ok(InlineIndex::new(reader, 16));
    open_on(disk.clone(), index.clone(), options(life), || 0, worker)
}

impl Harness {
    pub fn new(seed: u64) -> Harness {
        Harness::on(SimDisk::new(seed), MemoryIndex::default(), 1).expect("an empty disk opens")
    }

    /// A new life of the store on what is there, with one session begun.
    pub fn on(disk: SimDisk, index: MemoryIndex, life: u64) -> Result<Harness, StoreFault> {
        let store = open(&disk, &index, life)?;
        let outlet = Recorder::default();
        let now = Now { monotonic_us: 1, unix_ms: 1 };
        let mut harness = Harness { disk, index, store, outlet, now, number: 0 };
        harness.begin(0).expect("nothing was seen yet");
        Ok(harness)
    }

    /// The power goes and comes back; the index keeps `kept` unpersisted batches.
    pub fn restart(self, kept: usize, life: u64) -> Result<Harness, StoreFault> {
        let Harness { disk, index, store, .. } = self;
        drop(store);
        disk.cut_power();
        index.crash(kept);
        Harness::on(disk, index, life)
    }

    pub fn begin(&mut self, durable_seen: u64) -> Result<(), Problem> {
        let name = "sequencer".into();
        let event = LinkEvent::Began { peer: PEER, name, incarnation: 1, durable_seen };
        self.number = 0;
        self.store.handle(self.now, event, &mut self.outlet)
    }

    /// Hands over a request without moving the disk; returns its number.
    pub fn ask(&mut self, request: &ToStore) -> u64 {
        self.try_ask(request.to_bytes().into()).expect("a good request")
    }

    pub fn try_ask(&mut self, entry: Bytes) -> Result<u64, Problem> {
        self.number += 1;
        let number = self.number;
        let event = LinkEvent::Entry { peer: PEER, number, entry };
        self.store.handle(self.now, event, &mut self.outlet).map(|()| number)
    }

    pub fn poll(&mut self) {
        self.store.poll(self.now, &mut self.outlet).expect("the disk works");
    }

    /// Lets everything happen that can.
    pub fn settle(&mut self) {
        self.poll();
        while self.disk.step() {
            self.poll();
        }
    }

    /// The answer to request `number`, if it has come.
    pub fn answer(&self, number: u64) -> Option<FromStore> {
        let mut answers = self.outlet.answers.iter().rev();
        answers.find(|answer| answer.to() == number).cloned()
    }

    /// Asks, lets everything happen, and returns the answer.
    pub fn get(&mut self, request: &ToStore) -> FromStore {
        self.outlet.answers.clear();
        let number = self.ask(request);
        self.settle();
        self.answer(number).expect("every request is answered")
    }

    /// Asks for something that needs no write, without moving the disk.
    pub fn look(&mut self, request: &ToStore) -> FromStore {
        self.outlet.answers.clear();
        let number = self.ask(request);
        self.poll();
        self.answer(number).expect("reads wait for no write")
    }

    pub fn acquire(&mut self) -> (u64, u64) {
        match self.get(&ToStore::Acquire { incarnation: 9 }) {
            FromStore::Granted { epoch, next_lsn, .. } => (epoch, next_lsn),
            other => panic!("not granted: {other:?}"),
        }
    }

    /// The whole log.
    pub fn read_all(&mut self) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let first_lsn = records.len() as u64 + 1;
            match self.look(&ToStore::ReadLog { first_lsn, size_max: 500 }) {
                FromStore::Records { count: 0, .. } => return records,
                FromStore::Records { records: bytes, .. } => records.extend(decode(bytes)),
                other => panic!("no records: {other:?}"),
            }
        }
    }
}

pub fn message(convo: &str, seq: u64, size: usize) -> Message {
    Message {
        convo: convo.into(),
        seq,
        mid: seq * 10,
        ts: 1_000 + seq,
        from: "alice".into(),
        device: "phone".into(),
        id: format!("id-{seq}").as_str().into(),
        body: Body::Binary { bytes: vec![seq as u8; size].into() },
    }
}

pub fn message_record(convo: &str, seq: u64, size: usize) -> Record {
    Record::Message { message: message(convo, seq, size) }
}

pub fn append(epoch: u64, first_lsn: u64, records: &[Record]) -> ToStore {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.write(&mut bytes));
    ToStore::Append { epoch, first_lsn, count: records.len() as u32, records: bytes.into() }
}

pub fn decode(bytes: Bytes) -> Vec<Record> {
    let mut reader = crate::link::wire::Reader::new(bytes);
    let mut records = Vec::new();
    while !reader.is_empty() {
        records.push(Record::read(&mut reader).expect("the log holds records"));
    }
    records
}
