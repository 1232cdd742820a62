//! An API server in memory: as much of one as the operator's writes need.
//!
//! It keeps objects by path, counts versions, refuses an update of a version that is no longer there, and remembers
//! what it was asked. A patch of any sort is laid over what is there, a null in it takes away.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::indexing_slicing)]

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tower::service_fn;

#[derive(Clone, Default)]
pub struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    asked: Vec<String>,
}

impl FakeApi {
    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Puts an object there, as somebody else would.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut state = self.0.lock().unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(path.into(), object);
    }

    /// Takes an object away, as somebody else would.
    pub fn remove(&self, path: &str) {
        self.0.lock().unwrap().objects.remove(path);
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().unwrap().objects.get(path).cloned()
    }

    /// What it was asked since the last time, such as `PATCH /api/v1/…`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().asked)
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (code, answer) = self.0.lock().unwrap().answer(&method, &path, body);
        Response::builder().status(code).body(Body::from(answer.to_string().into_bytes())).unwrap()
    }
}

impl State {
    fn answer(&mut self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        self.asked.push(format!("{method} {path}"));
        // A status is a part of its object, an object is made in its collection.
        let path = path.trim_end_matches("/status");
        let path = match *method {
            Method::POST => format!("{path}/{}", body["metadata"]["name"].as_str().unwrap()),
            _ => path.to_owned(),
        };
        let there = self.objects.get(&path);
        let stale = |there: &Value| {
            let wanted = &body["metadata"]["resourceVersion"];
            wanted.is_string() && *wanted != there["metadata"]["resourceVersion"]
        };
        match (method, there) {
            (&Method::GET, Some(object)) => return (200, object.clone()),
            (&Method::GET | &Method::DELETE, None) => return failure(404, "not found"),
            (&Method::POST, Some(_)) => return failure(409, "already exists"),
            (_, Some(there)) if stale(there) => return failure(409, "the object has been modified"),
            (&Method::DELETE, Some(_)) => {
                self.objects.remove(&path);
                return (200, json!({"kind": "Status", "status": "Success"}));
            }
            _ => {}
        }
        let before = there.cloned().unwrap_or_default();
        let mut object = if *method == Method::PATCH { before.clone() } else { Value::Null };
        lay_over(&mut object, &body);
        object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
        if object != before {
            self.version += 1;
            object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        }
        self.objects.insert(path, object.clone());
        (200, object)
    }
}

fn failure(code: u16, message: &str) -> (u16, Value) {
    let reason = if code == 404 { "NotFound" } else { "Conflict" };
    (code, json!({"kind": "Status", "status": "Failure", "code": code, "message": message, "reason": reason}))
}

fn lay_over(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else { return object.clone_from(patch) };
    if !object.is_object() {
        *object = json!({});
    }
    for (field, value) in patch {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(field);
        } else {
            lay_over(&mut object[field.as_str()], value);
        }
    }
}
