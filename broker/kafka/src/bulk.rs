//! Records to librdkafka and outcomes from it, in bulk: what rdkafka wraps for one record at a time, looking its topic up
//! and allocating for it each time.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString, c_void},
    ptr::NonNull,
    sync::Arc,
    time::Duration,
};

use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, Producer, ProducerContext},
};
use rdkafka_sys::{self as sys, rd_kafka_vtype_t as vtype};

/// From now on this thread, and each that it starts, does not interrupt who runs when it wakes up (`SCHED_BATCH`, sched(7)):
/// it finds more to do at once when its turn comes. False: the system does not let it.
pub fn interrupt_nobody() -> bool {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is this thread; the parameters are alive and only read.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) == 0 }
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What the record was sent with.
    pub token: usize,
    /// Its offset, if Kafka told it.
    pub outcome: Result<Option<u64>, RDKafkaErrorCode>,
}

/// A record on its way to librdkafka, which copies all of it.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a, H> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    /// Names and values.
    pub headers: H,
    /// Milliseconds since the Unix epoch.
    pub created: i64,
}

/// A producer with its queue of events, which only this may poll.
pub struct Sender<C: ProducerContext<DeliveryOpaque = usize>> {
    queue: NonNull<sys::rd_kafka_queue_t>,
    producer: BaseProducer<C>,
}

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl<C: ProducerContext<DeliveryOpaque = usize>> Send for Sender<C> {}
// SAFETY: as above; they have locks of their own.
unsafe impl<C: ProducerContext<DeliveryOpaque = usize>> Sync for Sender<C> {}

impl<C: ProducerContext<DeliveryOpaque = usize>> Sender<C> {
    /// Absent: out of memory.
    pub fn new(producer: BaseProducer<C>) -> Option<Sender<C>> {
        // SAFETY: the client is alive.
        let queue = unsafe { sys::rd_kafka_queue_get_main(producer.client().native_ptr()) };
        Some(Sender { queue: NonNull::new(queue)?, producer })
    }

    pub fn producer(&self) -> &BaseProducer<C> {
        &self.producer
    }

    /// Waits for something to happen, at most so long and at least until [`Sender::rouse`]; adds the outcomes of records to
    /// `reports` and tells the context of all else. True if anything happened.
    pub fn wait(&self, patience: Duration, reports: &mut Vec<Report>) -> bool {
        // Rounded up, lest the last of them be waited for without rest.
        let milliseconds = i32::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: the queue is alive; the event is ours to destroy.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), milliseconds) };
        let Some(event) = NonNull::new(event).map(Event) else { return false };
        match event.kind() {
            sys::RD_KAFKA_EVENT_DR => event.reports(reports),
            sys::RD_KAFKA_EVENT_STATS => self.context().stats_raw(event.statistics().to_bytes()),
            sys::RD_KAFKA_EVENT_ERROR => {
                let (error, words) = event.error();
                self.context().error(error, &words.to_string_lossy());
            }
            _ => {}
        }
        true
    }

    /// Ends a wait that goes on, or else the next one, at once.
    pub fn rouse(&self) {
        // SAFETY: the queue is alive.
        unsafe { sys::rd_kafka_queue_yield(self.queue.as_ptr()) }
    }

    fn context(&self) -> &C {
        self.producer.client().context()
    }
}

impl<C: ProducerContext<DeliveryOpaque = usize>> Drop for Sender<C> {
    fn drop(&mut self) {
        // SAFETY: given by rd_kafka_queue_get_main, destroyed once and before its client.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// A partition that records are sent to.
pub struct Destination<C: ProducerContext<DeliveryOpaque = usize>> {
    topic: NonNull<sys::rd_kafka_topic_t>,
    partition: i32,
    sender: Arc<Sender<C>>,
}

// SAFETY: librdkafka's topics may be used from any thread.
unsafe impl<C: ProducerContext<DeliveryOpaque = usize>> Send for Destination<C> {}
// SAFETY: as above; they have locks of their own.
unsafe impl<C: ProducerContext<DeliveryOpaque = usize>> Sync for Destination<C> {}

impl<C: ProducerContext<DeliveryOpaque = usize>> Destination<C> {
    /// Asks Kafka nothing yet; whether there is such a partition shows later.
    pub fn new(
        sender: Arc<Sender<C>>,
        topic: &str,
        partition: u32,
    ) -> Result<Destination<C>, RDKafkaErrorCode> {
        let name = CString::new(topic).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        let partition = i32::try_from(partition).map_err(|_| RDKafkaErrorCode::UnknownPartition)?;
        // SAFETY: the client is alive; the name ends with NUL and is copied; without settings it takes the client's.
        let topic = unsafe {
            sys::rd_kafka_topic_new(
                sender.producer.client().native_ptr(),
                name.as_ptr(),
                std::ptr::null_mut(),
            )
        };
        let topic = NonNull::new(topic).ok_or(RDKafkaErrorCode::InvalidTopic)?;
        Ok(Destination { topic, partition, sender })
    }

    /// Never blocks. The outcome comes with this token.
    pub fn send<'a, H>(&self, record: Outgoing<'a, H>, token: usize) -> Result<(), RDKafkaErrorCode>
    where
        H: ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    {
        let headers = Headers::new(record.headers)?;
        let headers_or_null = headers.as_ref().map_or(std::ptr::null_mut(), |headers| headers.0.as_ptr());
        let (key, key_size) = parts(record.key);
        let (value, value_size) = parts(record.value);
        // SAFETY: client, topic and headers are alive; each kind is followed by values of its C types; key and value are
        // copied before the call returns.
        let error = unsafe {
            sys::rd_kafka_producev(
                self.sender.producer.client().native_ptr(),
                vtype::RD_KAFKA_VTYPE_RKT,
                self.topic.as_ptr(),
                vtype::RD_KAFKA_VTYPE_PARTITION,
                self.partition,
                vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY,
                vtype::RD_KAFKA_VTYPE_KEY,
                key,
                key_size,
                vtype::RD_KAFKA_VTYPE_VALUE,
                value,
                value_size,
                vtype::RD_KAFKA_VTYPE_TIMESTAMP,
                record.created,
                vtype::RD_KAFKA_VTYPE_HEADERS,
                headers_or_null,
                vtype::RD_KAFKA_VTYPE_OPAQUE,
                token as *mut c_void,
                vtype::RD_KAFKA_VTYPE_END,
            )
        };
        code(error)?;
        // They are librdkafka's from now on.
        std::mem::forget(headers);
        Ok(())
    }
}

impl<C: ProducerContext<DeliveryOpaque = usize>> Drop for Destination<C> {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_topic_new, destroyed once and before its client, which the sender keeps.
        unsafe { sys::rd_kafka_topic_destroy(self.topic.as_ptr()) }
    }
}

struct Headers(NonNull<sys::rd_kafka_headers_t>);

impl Headers {
    /// Absent where there are none.
    fn new<'a>(
        all: impl ExactSizeIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Option<Headers>, RDKafkaErrorCode> {
        if all.len() == 0 {
            return Ok(None);
        }
        // SAFETY: takes nothing of ours.
        let headers = unsafe { sys::rd_kafka_headers_new(all.len()) };
        let headers = Headers(NonNull::new(headers).ok_or(RDKafkaErrorCode::Fail)?);
        for (name, value) in all {
            let size = |bytes: &[u8]| isize::try_from(bytes.len()).unwrap_or(isize::MAX);
            // SAFETY: the headers are alive; name and value are as long as is said, and copied.
            code(unsafe {
                sys::rd_kafka_header_add(
                    headers.0.as_ptr(),
                    name.as_ptr().cast(),
                    size(name),
                    value.as_ptr().cast(),
                    size(value),
                )
            })?;
        }
        Ok(Some(headers))
    }
}

impl Drop for Headers {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_headers_new, still ours, and destroyed once.
        unsafe { sys::rd_kafka_headers_destroy(self.0.as_ptr()) }
    }
}

struct Event(NonNull<sys::rd_kafka_event_t>);

impl Event {
    fn kind(&self) -> i32 {
        // SAFETY: the event is alive.
        unsafe { sys::rd_kafka_event_type(self.0.as_ptr()) }
    }

    fn reports(&self, into: &mut Vec<Report>) {
        // SAFETY: the event is alive, and with it its messages; each is checked before it is looked at.
        unsafe {
            into.reserve(sys::rd_kafka_event_message_count(self.0.as_ptr()));
            while let Some(message) = sys::rd_kafka_event_message_next(self.0.as_ptr()).as_ref() {
                let outcome = code(message.err).map(|()| u64::try_from(message.offset).ok());
                into.push(Report { token: message._private as usize, outcome });
            }
        }
    }

    fn statistics(&self) -> &CStr {
        // SAFETY: the event is alive and has statistics, which end with NUL and live as long; null is checked for.
        unsafe { words(sys::rd_kafka_event_stats(self.0.as_ptr())) }
    }

    fn error(&self) -> (KafkaError, &CStr) {
        // SAFETY: the event is alive; its words end with NUL and live as long; null is checked for.
        unsafe {
            let code = sys::rd_kafka_event_error(self.0.as_ptr());
            (KafkaError::Global(code.into()), words(sys::rd_kafka_event_error_string(self.0.as_ptr())))
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: given by rd_kafka_queue_poll and destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

/// # Safety
/// `text` is null, or ends with NUL and lives as long as the answer is used.
unsafe fn words<'a>(text: *const std::ffi::c_char) -> &'a CStr {
    if text.is_null() {
        return c"";
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }
}

fn parts(bytes: Option<&[u8]>) -> (*mut c_void, usize) {
    // An empty slice is not null, which is what tells it from none.
    bytes.map_or((std::ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

fn code(error: sys::rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
    match error {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(error.into()),
    }
}
