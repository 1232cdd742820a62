//! What rdkafka does not wrap of topic settings: incremental changes, where what is not named stays as it is
//! (KIP-339; the older request resets it), and why settings are not told (rdkafka drops the error of a topic).
//!
//! So this calls librdkafka itself.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    ptr::{self, NonNull},
    time::Duration,
};

use rdkafka::{
    client::{Client, ClientContext},
    error::RDKafkaErrorCode,
};
use rdkafka_sys as sys;

/// Why settings were not changed or told: Kafka's code and its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: RDKafkaErrorCode,
    pub(super) why: String,
}

/// Sets these settings of a topic. Blocks until Kafka has answered, at most for `patience`.
pub(super) fn set<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    settings: &[(String, String)],
    patience: Duration,
) -> Result<(), Refusal> {
    let resource = Resource::new(topic)?;
    for (name, value) in settings {
        resource.set(name, value)?;
    }
    ask(client, &resource, patience, &ALTER)
}

/// Whether Kafka tells a topic's settings, and if not, why. Blocks as [`set`] does.
pub(super) fn describe<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    patience: Duration,
) -> Result<(), Refusal> {
    ask(client, &Resource::new(topic)?, patience, &DESCRIBE)
}

/// The functions of librdkafka that belong to one kind of question.
struct Question {
    kind: sys::rd_kafka_admin_op_t,
    send: unsafe extern "C" fn(
        *mut sys::rd_kafka_t,
        *mut *mut sys::rd_kafka_ConfigResource_t,
        usize,
        *const sys::rd_kafka_AdminOptions_t,
        *mut sys::rd_kafka_queue_t,
    ),
    /// The resources of an answer, which live as long as it: null, or as many as it counts. To be called with an event
    /// that is alive.
    resources:
        unsafe fn(*mut sys::rd_kafka_event_t, &mut usize) -> *mut *const sys::rd_kafka_ConfigResource_t,
}

const ALTER: Question = Question {
    kind: sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_INCREMENTALALTERCONFIGS,
    send: sys::rd_kafka_IncrementalAlterConfigs,
    resources: |event, count| {
        // SAFETY: called with an event that is alive; null stays null.
        unsafe {
            let result = sys::rd_kafka_event_IncrementalAlterConfigs_result(event);
            if result.is_null() {
                return ptr::null_mut();
            }
            sys::rd_kafka_IncrementalAlterConfigs_result_resources(result, count)
        }
    },
};

const DESCRIBE: Question = Question {
    kind: sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS,
    send: sys::rd_kafka_DescribeConfigs,
    resources: |event, count| {
        // SAFETY: called with an event that is alive; null stays null.
        unsafe {
            let result = sys::rd_kafka_event_DescribeConfigs_result(event);
            if result.is_null() {
                return ptr::null_mut();
            }
            sys::rd_kafka_DescribeConfigs_result_resources(result, count)
        }
    },
};

fn ask<C: ClientContext>(
    client: &Client<C>,
    resource: &Resource,
    patience: Duration,
    question: &Question,
) -> Result<(), Refusal> {
    let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    let queue = Queue::new(client)?;
    let options = Options::new(client, question.kind, milliseconds)?;
    let mut resources = [resource.0.as_ptr()];
    // SAFETY: client, resource, options and queue are alive for the whole call; librdkafka copies what it needs
    // of resource and options before it returns.
    unsafe {
        (question.send)(
            client.native_ptr(),
            resources.as_mut_ptr(),
            resources.len(),
            options.0.as_ptr(),
            queue.0.as_ptr(),
        );
    }
    // librdkafka answers by itself when its request times out; a little more is for its own sake.
    queue.answer(milliseconds.saturating_add(1000))?.outcome(question)
}

/// A topic's settings to be changed.
struct Resource(NonNull<sys::rd_kafka_ConfigResource_t>);

impl Resource {
    fn new(topic: &str) -> Result<Resource, Refusal> {
        let topic = text(topic)?;
        let kind = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
        // SAFETY: the name ends with NUL and is copied.
        let resource = unsafe { sys::rd_kafka_ConfigResource_new(kind, topic.as_ptr()) };
        NonNull::new(resource).map(Resource).ok_or_else(|| refused("no such resource"))
    }

    fn set(&self, name: &str, value: &str) -> Result<(), Refusal> {
        let (name, value) = (text(name)?, text(value)?);
        let set = sys::rd_kafka_AlterConfigOpType_t::RD_KAFKA_ALTER_CONFIG_OP_TYPE_SET;
        // SAFETY: the resource is alive; both texts end with NUL and are copied; the error, if any, is ours to destroy.
        unsafe {
            let resource = self.0.as_ptr();
            let error = sys::rd_kafka_ConfigResource_add_incremental_config(
                resource,
                name.as_ptr(),
                set,
                value.as_ptr(),
            );
            if error.is_null() {
                return Ok(());
            }
            let why = words(sys::rd_kafka_error_string(error));
            sys::rd_kafka_error_destroy(error);
            Err(refused(&why))
        }
    }
}

impl Drop for Resource {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_ConfigResource_new and destroyed once.
        unsafe { sys::rd_kafka_ConfigResource_destroy(self.0.as_ptr()) }
    }
}

struct Options(NonNull<sys::rd_kafka_AdminOptions_t>);

impl Options {
    fn new<C: ClientContext>(
        client: &Client<C>,
        kind: sys::rd_kafka_admin_op_t,
        milliseconds: i32,
    ) -> Result<Options, Refusal> {
        // SAFETY: the client is alive.
        let options = unsafe { sys::rd_kafka_AdminOptions_new(client.native_ptr(), kind) };
        let options = Options(NonNull::new(options).ok_or_else(|| refused("no options"))?);
        // SAFETY: the options are alive; no text of the error is asked for.
        let error = unsafe {
            let options = options.0.as_ptr();
            sys::rd_kafka_AdminOptions_set_request_timeout(options, milliseconds, ptr::null_mut(), 0)
        };
        check(error, "the timeout").map(|()| options)
    }
}

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_AdminOptions_new and destroyed once.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0.as_ptr()) }
    }
}

/// Where the answer comes. It must not outlive the client, which its maker keeps.
struct Queue(NonNull<sys::rd_kafka_queue_t>);

impl Queue {
    fn new<C: ClientContext>(client: &Client<C>) -> Result<Queue, Refusal> {
        // SAFETY: the client is alive.
        let queue = unsafe { sys::rd_kafka_queue_new(client.native_ptr()) };
        NonNull::new(queue).map(Queue).ok_or_else(|| refused("no queue"))
    }

    fn answer(&self, milliseconds: i32) -> Result<Answer, Refusal> {
        // SAFETY: the queue is alive; the event is ours to destroy.
        let event = unsafe { sys::rd_kafka_queue_poll(self.0.as_ptr(), milliseconds) };
        NonNull::new(event).map(Answer).ok_or_else(|| Refusal {
            code: RDKafkaErrorCode::OperationTimedOut,
            why: "no answer in time".to_owned(),
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made by rd_kafka_queue_new and destroyed once.
        unsafe { sys::rd_kafka_queue_destroy(self.0.as_ptr()) }
    }
}

struct Answer(NonNull<sys::rd_kafka_event_t>);

impl Answer {
    fn outcome(&self, question: &Question) -> Result<(), Refusal> {
        let event = self.0.as_ptr();
        // SAFETY: the event is alive, and with it all that is read of it here; each pointer is checked before it is
        // followed, and the array has as many entries as was told.
        unsafe {
            check(sys::rd_kafka_event_error(event), &words(sys::rd_kafka_event_error_string(event)))?;
            let mut count = 0;
            let resources = (question.resources)(event, &mut count);
            if resources.is_null() || count == 0 {
                return Err(refused("an answer about nothing"));
            }
            let resource = *resources;
            let why = words(sys::rd_kafka_ConfigResource_error_string(resource));
            check(sys::rd_kafka_ConfigResource_error(resource), &why)
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // SAFETY: given by rd_kafka_queue_poll and destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0.as_ptr()) }
    }
}

fn check(error: sys::rd_kafka_resp_err_t, why: &str) -> Result<(), Refusal> {
    match error {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(Refusal { code: error.into(), why: why.to_owned() }),
    }
}

fn refused(why: &str) -> Refusal {
    Refusal { code: RDKafkaErrorCode::InvalidArgument, why: why.to_owned() }
}

fn text(text: &str) -> Result<CString, Refusal> {
    CString::new(text).map_err(|_| refused("a NUL in a name or value"))
}

/// # Safety
/// `text` is null, or ends with NUL and stays alive during the call.
unsafe fn words(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
