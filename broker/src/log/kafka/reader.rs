//! Reading: owns the consumers and the cursors by which partitions are read.
//!
//! A cursor reads one partition on from where it stands. One librdkafka client serves many cursors, each from a queue of its
//! own; a second cursor of a partition needs a second client, for a client reads a partition once. Cursors wait
//! for their next read; after [`IDLE`] they go, and clients without any with them.
//!
//! Kafka answers one request of a connection at a time, and a reader at the end of its partition keeps one open for
//! long. So what is there already is read by other clients than what is waited for, and questions have their own.
//! No consumer group is ever joined.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mqtt_kafka::{Access, access::without_value};
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message, Offset as Position, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, base_consumer::PartitionQueue},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout_at,
};

use super::{clients, vitals::Vitals};
use crate::log::{Bounds, LogError, Offset, ReadBatch, ReadLimit, Record, StoredRecord, Topic};

/// How long a cursor waits for its next read.
const IDLE: Duration = Duration::from_secs(30);
/// How long Kafka may take to give what is there.
const ANSWER: Duration = Duration::from_secs(30);
/// How long Kafka may take to tell a partition's bounds.
const BOUNDS: Duration = Duration::from_secs(10);
/// How long a topic, or its leader, may be news to a node; and what asking about it may take.
const NEWS: Duration = Duration::from_secs(5);
const QUESTION: Duration = Duration::from_secs(2);
/// Reads of what is there already, at a time.
const HISTORIES: usize = 4;
const POLL: Duration = Duration::from_millis(100);

/// What a cursor reads, and of which topic and partition.
type Place = (Reads, String, u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reads {
    /// What is there already.
    History,
    /// What comes.
    Tail,
}

pub(super) struct Readers {
    vitals: Arc<Vitals>,
    state: Mutex<State>,
    /// One for each read of history at a time: as many clients there may be.
    histories: Semaphore,
}

struct State {
    /// Clients that were started with another are not used again.
    access: Arc<Access>,
    clients: Vec<Arc<Client>>,
    /// Reads nothing.
    questions: Option<Arc<BaseConsumer<Events>>>,
    idle: HashMap<Place, Vec<Cursor>>,
}

struct Client {
    consumer: Arc<BaseConsumer<Events>>,
    reads: Reads,
    /// Partitions that a cursor reads by this client.
    taken: Mutex<HashSet<Place>>,
    access: Arc<Access>,
}

struct Cursor {
    // Goes before the seat: with it goes the queue's wake-up, which must not be the next cursor's by then.
    queue: PartitionQueue<Events>,
    seat: Seat,
    filled: Arc<Notify>,
    /// Of the next record.
    next: Offset,
    /// Came behind records that were read first.
    error: Option<KafkaError>,
    used: Instant,
    /// It was opened for this read.
    is_new: bool,
}

/// Keeps a place of a client to one cursor.
struct Seat {
    client: Arc<Client>,
    place: Place,
}

/// What a cursor came upon.
enum Found {
    Nothing,
    End,
    Records,
}

pub(super) struct Events {
    vitals: Arc<Vitals>,
}

impl Reads {
    /// How long Kafka may keep a request open that it has nothing for. What is asked for next waits behind it.
    fn patience(self) -> Duration {
        match self {
            Reads::History => Duration::from_millis(10),
            Reads::Tail => Duration::from_millis(500),
        }
    }
}

impl Readers {
    pub(super) fn new(access: Arc<Access>, vitals: Arc<Vitals>) -> Readers {
        let state = State { access, clients: Vec::new(), questions: None, idle: HashMap::new() };
        Readers { vitals, state: Mutex::new(state), histories: Semaphore::new(HISTORIES) }
    }

    /// Reads with these settings from now on.
    pub(super) fn renew(&self, access: Arc<Access>) {
        let mut state = self.state.lock();
        state.access = access;
        state.clients.clear();
        state.questions = None;
        state.idle.clear();
    }

    /// See [`crate::log::Log::read`].
    pub(super) async fn read(
        &self,
        topic: &Topic,
        partition: u32,
        from: Offset,
        limit: ReadLimit,
    ) -> Result<ReadBatch, LogError> {
        let nothing = ReadBatch { records: Vec::new(), next: from };
        if !limit.wait.is_zero() {
            let cursor = self.take(&(Reads::Tail, topic.name().to_owned(), partition), from)?;
            let (cursor, batch) = self.read_on(cursor, limit, Instant::now() + limit.wait, None).await?;
            self.give_back(cursor);
            return Ok(batch.unwrap_or(nothing));
        }
        let end = match self.bounds(topic, partition).await? {
            Bounds { start, .. } if from < start => return Err(LogError::Lost { start }),
            Bounds { end, .. } if from > end => return Err(LogError::Ahead { end }),
            Bounds { end, .. } if from == end => return Ok(nothing),
            Bounds { end, .. } => end,
        };
        let _turn = self.histories.acquire().await;
        let cursor = self.take(&(Reads::History, topic.name().to_owned(), partition), from)?;
        let deadline = Instant::now() + ANSWER;
        let (cursor, batch) = self.read_on(cursor, limit, deadline, Some(end)).await?;
        let no_answer = || {
            let (topic, limit) = (topic.name(), ANSWER.as_secs());
            LogError::Store(format!(
                "Kafka gave no records of topic {topic} partition {partition} for {limit} s"
            ))
        };
        let batch = batch.ok_or_else(no_answer)?;
        // One that has reached the end would keep a request open, and others waiting.
        if batch.next < end {
            self.give_back(cursor);
        }
        Ok(batch)
    }

    /// Waits for records. With `end`, which Kafka has told before, an answer that there is nothing more counts, too:
    /// all is read up to there.
    async fn read_on(
        &self,
        mut cursor: Cursor,
        limit: ReadLimit,
        deadline: Instant,
        end: Option<Offset>,
    ) -> Result<(Cursor, Option<ReadBatch>), LogError> {
        let mut batch = ReadBatch { records: Vec::new(), next: cursor.next };
        loop {
            let found = cursor.drain(limit, &mut batch);
            match (self.explain(&cursor, found).await?, end) {
                (Found::Records, _) => {
                    cursor.next = batch.next;
                    return Ok((cursor, Some(batch)));
                }
                // It may have been found before Kafka told the end, and more came in between.
                (Found::End, Some(_)) if !cursor.is_new => {
                    let (place, from) = (cursor.seat.place.clone(), cursor.next);
                    drop(cursor);
                    cursor = self.open(&place, from)?;
                    continue;
                }
                (Found::End, Some(end)) if !self.reads_nearby() => {
                    batch.next = end;
                    cursor.next = end;
                    return Ok((cursor, Some(batch)));
                }
                // A follower may lag behind what the leader told.
                (Found::End | Found::Nothing, _) => {}
            }
            if timeout_at(deadline.into(), cursor.filled.notified()).await.is_err() {
                return Ok((cursor, None));
            }
        }
    }

    pub(super) async fn bounds(&self, topic: &Topic, partition: u32) -> Result<Bounds, LogError> {
        let ask = |client: &BaseConsumer<Events>, name: &str, partition| {
            client.fetch_watermarks(name, partition, BOUNDS)
        };
        let (start, end) = self.ask_leader(topic, partition, ask).await?;
        let offset = |offset| Offset::try_from(offset).unwrap_or(0);
        Ok(Bounds { start: offset(start), end: offset(end) })
    }

    /// See [`crate::log::Log::offset_at`]; here it is exact: the first record that was created at `time` or later.
    pub(super) async fn offset_at(
        &self,
        topic: &Topic,
        partition: u32,
        time: i64,
    ) -> Result<Offset, LogError> {
        // Negative ones have meanings of their own.
        let time = time.max(0);
        let ask = move |client: &BaseConsumer<Events>, name: &str, partition| {
            let mut asked = TopicPartitionList::new();
            asked.add_partition_offset(name, partition, Position::Offset(time))?;
            let told = client.offsets_for_times(asked, BOUNDS)?;
            let told = told.find_partition(name, partition);
            let told = told.ok_or(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition))?;
            told.error()?;
            Ok(told.offset())
        };
        match self.ask_leader(topic, partition, ask).await? {
            Position::Offset(offset) => Ok(Offset::try_from(offset).unwrap_or(0)),
            _ => Ok(self.bounds(topic, partition).await?.end),
        }
    }

    /// Asks the partition's leader about offsets, by a call that blocks.
    async fn ask_leader<T: Send + 'static>(
        &self,
        topic: &Topic,
        partition: u32,
        ask: impl Fn(&BaseConsumer<Events>, &str, i32) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, LogError> {
        let client = self.questions()?;
        let asked_by = client.clone();
        let name = topic.name().to_owned();
        let asked = tokio::task::spawn_blocking(move || {
            let partition = i32::try_from(partition).unwrap_or(i32::MAX);
            let until = Instant::now() + NEWS;
            loop {
                match ask(&client, &name, partition) {
                    // A new topic is not known to all nodes at once, nor a new leader to us.
                    Err(error) if is_news(&error) && Instant::now() < until => {
                        // Whatever it answers, the offsets are asked for again.
                        let _ = client.fetch_metadata(Some(&name), QUESTION);
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    answer => return answer,
                }
            }
        });
        let answer = asked.await.map_err(|_| LogError::Store("the broker is stopping".to_owned()))?;
        answer.map_err(|error| {
            if is_news(&error) {
                // What the client knows of the topic may be of its former life (librdkafka 4898): a new one starts afresh.
                let former = self.state.lock().questions.take_if(|client| Arc::ptr_eq(client, &asked_by));
                drop(former);
            }
            let why = self.vitals.last_error().filter(|_| is_transport(&error));
            let why = why.unwrap_or_else(|| error.to_string());
            LogError::Store(format!(
                "Kafka tells no offsets of topic {} partition {partition}: {why}",
                topic.name()
            ))
        })
    }

    /// For questions, which may block.
    pub(super) fn questions(&self) -> Result<Arc<BaseConsumer<Events>>, LogError> {
        let mut state = self.state.lock();
        if let Some(client) = &state.questions {
            return Ok(client.clone());
        }
        let events = Events { vitals: self.vitals.clone() };
        let client = state.access.client().create_with_context(events).map_err(|e| no_client(&e))?;
        let client = Arc::new(client);
        serve(&client, "kafka-questions").map_err(|error| no_client(&error))?;
        state.questions = Some(client.clone());
        Ok(client)
    }

    /// Lets go what was not read by for a while.
    pub(super) fn tidy(&self) {
        let mut state = self.state.lock();
        for cursors in state.idle.values_mut() {
            cursors.retain(|cursor| cursor.used.elapsed() < IDLE);
        }
        state.idle.retain(|_, cursors| !cursors.is_empty());
        state.clients.retain(|client| !client.taken.lock().is_empty());
    }

    fn reads_nearby(&self) -> bool {
        self.state.lock().access.rack().is_some()
    }

    /// A cursor that stands there, or a new one.
    fn take(&self, place: &Place, from: Offset) -> Result<Cursor, LogError> {
        let waiting = {
            let mut state = self.state.lock();
            let cursors = state.idle.get_mut(place);
            cursors.and_then(|cursors| match cursors.iter().position(|cursor| cursor.next == from) {
                Some(at) => Some(cursors.swap_remove(at)),
                // One that stands elsewhere makes room for it.
                None => cursors.pop(),
            })
        };
        match waiting {
            Some(cursor) if cursor.next == from => Ok(cursor),
            elsewhere => {
                drop(elsewhere);
                self.open(place, from)
            }
        }
    }

    fn give_back(&self, mut cursor: Cursor) {
        cursor.used = Instant::now();
        cursor.is_new = false;
        let mut state = self.state.lock();
        if Arc::ptr_eq(&cursor.seat.client.access, &state.access) {
            state.idle.entry(cursor.seat.place.clone()).or_default().push(cursor);
        }
    }

    fn open(&self, place: &Place, from: Offset) -> Result<Cursor, LogError> {
        let client = {
            let mut state = self.state.lock();
            let free =
                |client: &&Arc<Client>| client.reads == place.0 && client.taken.lock().insert(place.clone());
            match state.clients.iter().find(free).cloned() {
                Some(client) => client,
                None => {
                    let client = Client::start(state.access.clone(), self.vitals.clone(), place.0);
                    let client = client.map_err(|error| no_client(&error))?;
                    client.taken.lock().insert(place.clone());
                    state.clients.push(client.clone());
                    client
                }
            }
        };
        Cursor::open(Seat { client, place: place.clone() }, from).map_err(|error| {
            LogError::Store(format!("Kafka: topic {} partition {} can't be read: {error}", place.1, place.2))
        })
    }

    /// What an error of a cursor means.
    async fn explain(&self, cursor: &Cursor, found: Result<Found, KafkaError>) -> Result<Found, LogError> {
        let error = match found {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        let (_, topic, partition) = &cursor.seat.place;
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                let topic = Topic::new(topic, 0, 0);
                let Bounds { start, end } = self.bounds(&topic, *partition).await?;
                match cursor.next {
                    next if next < start => Err(LogError::Lost { start }),
                    next if next > end => Err(LogError::Ahead { end }),
                    next => Err(LogError::Store(format!(
                        "Kafka refuses offset {next} of topic {} partition {partition} for now",
                        topic.name()
                    ))),
                }
            }
            _ if is_news(&error) => Err(LogError::UnknownTopic(topic.clone())),
            // librdkafka goes on by itself.
            _ if is_transport(&error) => Ok(Found::Nothing),
            _ => Err(LogError::Store(format!("Kafka: topic {topic} partition {partition}: {error}"))),
        }
    }
}

impl Client {
    fn start(access: Arc<Access>, vitals: Arc<Vitals>, reads: Reads) -> Result<Arc<Client>, KafkaError> {
        let consumer = clients::consumer(&access, reads.patience()).create_with_context(Events { vitals })?;
        let consumer = Arc::new(consumer);
        serve(&consumer, "kafka-reader")?;
        Ok(Arc::new(Client { consumer, reads, taken: Mutex::default(), access }))
    }
}

/// librdkafka wants its events taken, whatever is read. Ends with the consumer.
fn serve(consumer: &Arc<BaseConsumer<Events>>, name: &str) -> Result<(), KafkaError> {
    let consumer = Arc::downgrade(consumer);
    let work = move || {
        while let Some(consumer) = consumer.upgrade() {
            match consumer.poll(POLL) {
                None => {}
                // Each partition has a queue of its own, from before its first fetch.
                Some(Ok(message)) => {
                    tracing::error!("Kafka: a record of topic {} came astray", message.topic())
                }
                // The reason comes to the context, too, and is better there.
                Some(Err(error)) => tracing::debug!("Kafka: {error}"),
            }
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(|error| KafkaError::ClientCreation(error.to_string()))
}

impl Cursor {
    fn open(seat: Seat, from: Offset) -> Result<Cursor, KafkaError> {
        let (_, topic, partition) = &seat.place;
        let number = i32::try_from(*partition).unwrap_or(i32::MAX);
        // The queue first: what is fetched comes to it from the start.
        let queue = seat.client.consumer.split_partition_queue(topic, number);
        let mut queue = queue.ok_or(KafkaError::MessageConsumption(RDKafkaErrorCode::UnknownPartition))?;
        let filled = Arc::new(Notify::new());
        let notify = filled.clone();
        queue.set_nonempty_callback(move || notify.notify_one());
        let mut list = TopicPartitionList::new();
        let position = Position::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        list.add_partition_offset(topic, number, position)?;
        let cursor =
            Cursor { queue, seat, filled, next: from, error: None, used: Instant::now(), is_new: true };
        cursor.seat.client.consumer.incremental_assign(&list)?;
        Ok(cursor)
    }

    /// Takes what has come, up to the limit.
    fn drain(&mut self, limit: ReadLimit, batch: &mut ReadBatch) -> Result<Found, KafkaError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let mut bytes = 0;
        let mut end = false;
        while batch.records.len() < limit.records && bytes < limit.bytes {
            let stored = match self.queue.poll(Duration::ZERO) {
                None => break,
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    end = true;
                    continue;
                }
                Some(Err(error)) if batch.records.is_empty() => return Err(error),
                Some(Err(error)) => {
                    self.error = Some(error);
                    break;
                }
                Some(Ok(message)) => stored(&message),
            };
            // What a former assignment fetched.
            if stored.offset < batch.next {
                continue;
            }
            end = false;
            bytes += size(&stored.record);
            batch.next = stored.offset + 1;
            batch.records.push(stored);
        }
        Ok(match batch.records.is_empty() {
            false => Found::Records,
            true if end => Found::End,
            true => Found::Nothing,
        })
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        let mut list = TopicPartitionList::new();
        let (_, topic, partition) = &self.seat.place;
        list.add_partition(topic, i32::try_from(*partition).unwrap_or(i32::MAX));
        // It was not assigned if its start failed.
        let _ = self.seat.client.consumer.incremental_unassign(&list);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.client.taken.lock().remove(&self.place);
    }
}

impl ClientContext for Events {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::vitals::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.vitals.take_error(&error, reason);
    }
}

impl ConsumerContext for Events {}

fn stored(message: &BorrowedMessage<'_>) -> StoredRecord {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    let record = Record {
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: headers
            .map(|header| {
                let value = header.value.unwrap_or_default();
                (Bytes::copy_from_slice(header.key.as_bytes()), Bytes::copy_from_slice(value))
            })
            .collect(),
        created: message.timestamp().to_millis().unwrap_or(0),
    };
    StoredRecord { offset: Offset::try_from(message.offset()).unwrap_or(0), record }
}

fn size(record: &Record) -> usize {
    let fields = record.key.iter().chain(&record.value);
    let headers = record.headers.iter().flat_map(|(name, value)| [name, value]);
    fields.chain(headers).map(Bytes::len).sum()
}

/// Kafka could not be asked; it will be, again.
fn is_transport(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
        )
    )
}

/// The topic, or who leads it, has not got about yet.
fn is_news(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::UnknownPartition
                | Code::UnknownTopic
                | Code::UnknownTopicOrPartition
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::OffsetNotAvailable
        )
    )
}

fn no_client(error: &KafkaError) -> LogError {
    let why = without_value(error);
    LogError::Store(format!("Kafka: no consumer could be started: {why}; check spec.kafka and its Secrets"))
}
