//! A connection over a pipe, to a node on a simulated store.

mod direct;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mqtt_broker_api::config::InstanceConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

use super::{Connection, serve};
use crate::{
    admission::{Newcomer, term},
    log::sim::{SimLog, cluster::Cluster, still::Still},
    node::Node,
    outside::Outside,
    process::make_node,
    server,
    session::log::Place,
    settings::Settings,
    simulation::world,
};

/// The next bytes, as many as asked for, or up to the end.
async fn read(stream: &mut DuplexStream, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let all = timeout(Duration::from_secs(30), stream.take(count as u64).read_to_end(&mut bytes)).await;
    all.unwrap_or_else(|_| panic!("only {bytes:02x?} came")).unwrap();
    bytes
}

/// A node, and what it stands on.
struct Rig {
    node: Arc<Node>,
    log: Arc<SimLog>,
    machine: Arc<Still>,
    tasks: Vec<JoinHandle<()>>,
}

impl Rig {
    async fn new() -> Rig {
        let cluster = Cluster::new(fastrand::Rng::with_seed(1), Box::new(|_, _, _| {}));
        let machine = Still::new(cluster.clone());
        let outside = Outside { simulated: Some(machine.clone()), mistake: None };
        let log = SimLog::new(cluster, outside.clone(), fastrand::Rng::with_seed(2), 10_000);
        let place = Place { node: "0", partitions: 1, shared: false };
        let made = make_node(outside, log.clone(), place, &world::config(10, 10), &world::acl()).await;
        let node = made.unwrap().unwrap_or_else(|problems| panic!("{:?}", problems.lines));
        let tasks = server::background(&node).into_iter().map(tokio::spawn).collect();
        Rig { node, log, machine, tasks }
    }
}

/// A client's end of a new connection, and the task that serves it.
fn dial(node: &Arc<Node>) -> (DuplexStream, JoinHandle<()>) {
    let (client, stream) = tokio::io::duplex(4096);
    let (newcomer, _) = node.admission.meet(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), 1000);
    (client, tokio::spawn(serve(node.clone(), stream, newcomer)))
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_the_store_refuses_closes_its_connection_without_an_acknowledgement() {
    for (connect, level) in
        [(&b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01c"[..], 4), (b"\x10\x0e\0\x04MQTT\x05\x02\0\0\0\0\x01c", 5)]
    {
        let Rig { node, machine, tasks, .. } = Rig::new().await;
        let (mut client, served) = dial(&node);
        client.write_all(connect).await.unwrap();
        let head = read(&mut client, 2).await;
        read(&mut client, head[1].into()).await;
        let publish = |id: u8| -> Vec<u8> {
            let properties: &[u8] = if level == 5 { b"\0" } else { b"" };
            let body = [&b"\0\x03r/1\0"[..], &[id], properties, b"x"].concat();
            [&[0x33, u8::try_from(body.len()).unwrap()][..], &body].concat()
        };
        client.write_all(&publish(1)).await.unwrap();
        let puback: &[u8] = if level == 5 { b"\x40\x03\0\x01\x10" } else { b"\x40\x02\0\x01" };
        assert_eq!(read(&mut client, puback.len()).await, puback, "level {level}");
        // What is so old the store takes for a stray, where it keeps the latest alone.
        machine.fall_behind(10 * 60 * 1000);
        client.write_all(&publish(2)).await.unwrap();
        let last = read(&mut client, 1000).await;
        match level {
            5 => assert!(matches!(last[..], [0xe0, _, 0x89, ..]), "{last:02x?}"),
            _ => assert!(last.is_empty(), "{last:02x?}"),
        }
        drop(client);
        served.await.unwrap();
        tasks.iter().for_each(|task| task.abort());
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_its_instance_everybody_is_closed_and_refused_and_finds_its_session_once_that_is_moved()
{
    for (connect, level) in [
        (&b"\x10\x0d\0\x04MQTT\x04\0\0\0\0\x01c"[..], 4),
        (b"\x10\x13\0\x04MQTT\x05\0\0\0\x05\x11\0\0\0\x3c\0\x01c", 5),
    ] {
        let Rig { node, log, tasks, .. } = Rig::new().await;
        let apply = async |expires_at: Option<u64>| {
            let config = InstanceConfig { expires_at, ..world::config(10, 10) };
            let settings = Settings::compile(config, &world::acl(), &*log).await;
            node.apply(settings.unwrap_or_else(|problems| panic!("{:?}", problems.lines))).await;
        };
        let greeted = async || {
            let (mut client, served) = dial(&node);
            client.write_all(connect).await.unwrap();
            let head = read(&mut client, 2).await;
            let connack = read(&mut client, head[1].into()).await;
            (client, served, [connack[0], connack[1]])
        };
        let watching = tokio::spawn(term::watch(node.clone()));
        apply(Some(node.wall() / 1000 + 10)).await;
        let (mut client, served, connack) = greeted().await;
        assert_eq!(connack, [0, 0], "level {level}");
        let last = read(&mut client, 1000).await;
        match level {
            5 => assert!(matches!(last[..], [0xe0, _, 0x98, ..]), "{last:02x?}"),
            _ => assert!(last.is_empty(), "{last:02x?}"),
        }
        drop(client);
        served.await.unwrap();
        assert_eq!(greeted().await.2, [0, if level == 5 { 0x8a } else { 5 }], "level {level}");
        apply(None).await;
        assert_eq!(greeted().await.2, [1, 0], "level {level}");
        watching.abort();
        tasks.iter().for_each(|task| task.abort());
    }
}

#[test]
fn a_connection_that_says_nothing_takes_little_memory() {
    /// Of what `serve` returns.
    fn task<F>(_: impl FnOnce(Arc<Node>, TcpStream, Newcomer) -> F) -> usize {
        size_of::<F>()
    }
    let (task, connection) = (task(serve::<TcpStream>), size_of::<Connection<TcpStream>>());
    // Beyond 1,024 bytes the allocator takes 1,280.
    assert!(task <= 64 && connection <= 1024, "{task} and {connection} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_acknowledges_behind_much_that_it_publishes_is_not_held_up_by_itself() {
    const COUNT: u16 = 3000;
    // How many deliveries it takes before it sends the rest of its publishes, and all acknowledgements behind them at once.
    for held_back in [0, 1000] {
        let Rig { node, tasks, .. } = Rig::new().await;
        let (mut client, stream) = tokio::io::duplex(1 << 20);
        let (newcomer, _) = node.admission.meet(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)), 1000);
        let served = tokio::spawn(serve(node.clone(), stream, newcomer));
        let greeting = b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01c\x82\x06\0\x01\0\x01t\x01";
        client.write_all(greeting).await.unwrap();
        assert_eq!(read(&mut client, 9).await, b"\x20\x02\0\0\x90\x03\0\x01\x01");
        let publishes = |numbers: std::ops::RangeInclusive<u16>| {
            let one = |number: u16| [&[0x32, 7, 0, 1, b't'][..], &number.to_be_bytes().repeat(2)].concat();
            numbers.flat_map(one).collect::<Vec<u8>>()
        };
        let began = tokio::time::Instant::now();
        let first = if held_back == 0 { COUNT } else { held_back };
        client.write_all(&publishes(1..=first)).await.unwrap();
        let (mut answered, mut delivered) = (0, 0);
        let mut acknowledgements = Vec::new();
        while answered < COUNT || delivered < COUNT {
            let head = read(&mut client, 2).await;
            let body = read(&mut client, head[1].into()).await;
            if head[0] == 0x40 {
                answered += 1;
                continue;
            }
            delivered += 1;
            assert_eq!(body[5..], delivered.to_be_bytes(), "after {answered} answers");
            acknowledgements.extend_from_slice(&[0x40, 2, body[3], body[4]]);
            if delivered >= held_back {
                let rest = if delivered == held_back { publishes(held_back + 1..=COUNT) } else { Vec::new() };
                let sent = [rest, std::mem::take(&mut acknowledgements)].concat();
                client.write_all(&sent).await.unwrap();
            }
        }
        assert!(began.elapsed() < crate::session::mailbox::PATIENCE, "{:?}", began.elapsed());
        served.abort();
        tasks.iter().for_each(|task| task.abort());
    }
}
