//! The load generator against a broker that errs on purpose: each fault must show in the report.

#![cfg(test)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use clap::Parser;
use mqtt_e2e::load::{self, Checks, Options, Plan};

/// What the broker does wrong, once, when it comes to message [`WHEN`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    Loses,
    Repeats,
    Swaps,
    Alters,
    ForgetsAck,
    SwapsAcks,
}

const WHEN: usize = 5;
const MESSAGES: u64 = 50;

#[test]
fn a_brokers_fault_shows_in_the_report() {
    let check = |fault: Fault, qos: u8, want: Checks, fails: bool| {
        let addr = broker(fault);
        let line = format!(
            "mqtt-load --addr {addr} --qos {qos} --payload 32 --warmup 0 --duration 1 --timeout 20 \
             --messages {MESSAGES} p2p --pairs 1"
        );
        let options = Cli::try_parse_from(line.split_whitespace()).unwrap().options;
        let report = load::run(&Plan::try_from(options).unwrap()).unwrap();
        assert_eq!(report.checks, want, "{fault:?} at QoS {qos}");
        assert_eq!(!report.failures().is_empty(), fails, "{fault:?} at QoS {qos}: {:?}", report.failures());
    };
    let fine = Checks::default();
    check(Fault::Nothing, 0, fine, false);
    check(Fault::Nothing, 1, fine, false);
    check(Fault::Loses, 0, Checks { loss: 1, ..fine }, false);
    check(Fault::Loses, 1, Checks { loss: 1, ..fine }, true);
    check(Fault::Repeats, 1, Checks { duplicates: 1, ..fine }, false);
    check(Fault::Repeats, 0, Checks { duplicates: 1, ..fine }, true);
    check(Fault::Swaps, 1, Checks { disorder: 1, ..fine }, true);
    check(Fault::Alters, 1, Checks { corrupt: 1, loss: 1, ..fine }, true);
    // The rest of the window is acknowledged past the one that is missing; then the publisher stops.
    check(Fault::ForgetsAck, 1, Checks { unacknowledged: 1, ack_disorder: 19, ..fine }, true);
    check(Fault::SwapsAcks, 1, Checks { ack_disorder: 2, ..fine }, true);
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// A broker of two connections: all that one publishes goes to the other, but for the fault.
fn broker(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let subscriber = Arc::new(Mutex::new(None));
    thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let subscriber = Arc::clone(&subscriber);
            // It ends with an error when the generator closes.
            thread::spawn(move || serve(&stream.unwrap(), &subscriber, fault));
        }
    });
    addr
}

fn serve(mut stream: &TcpStream, subscriber: &Mutex<Option<TcpStream>>, fault: Fault) -> io::Result<()> {
    let deliver = |packet: &[u8]| {
        let subscriber = subscriber.lock().unwrap();
        subscriber.as_ref().map_or(Ok(()), |mut to| to.write_all(packet))
    };
    let (mut number, mut held, mut held_ack) = (0, None, None);
    loop {
        let mut packet = vec![0; 2];
        stream.read_exact(&mut packet)?;
        let [head, length] = [packet[0], packet[1]];
        assert!(length < 0x80, "these packets are short");
        packet.resize(2 + usize::from(length), 0);
        stream.read_exact(&mut packet[2..])?;
        match head {
            0x10 => stream.write_all(&[0x20, 2, 0, 0])?,
            0x82 => {
                *subscriber.lock().unwrap() = Some(stream.try_clone()?);
                stream.write_all(&[0x90, 3, packet[2], packet[3], packet[packet.len() - 1]])?;
            }
            0x30 | 0x32 => {
                let now = number == WHEN;
                number += 1;
                let id = 4 + usize::from(packet[3]);
                let ack = (head == 0x32).then(|| [0x40, 2, packet[id], packet[id + 1]]);
                match fault {
                    Fault::Loses if now => {}
                    Fault::Swaps if now => held = Some(packet),
                    Fault::Repeats if now => deliver(&[packet.clone(), packet].concat())?,
                    Fault::Alters if now => {
                        let last = packet.len() - 1;
                        packet[last] ^= 1;
                        deliver(&packet)?;
                    }
                    _ => {
                        deliver(&packet)?;
                        deliver(&held.take().unwrap_or_default())?;
                    }
                }
                match (fault, ack) {
                    (Fault::ForgetsAck, Some(_)) if now => {}
                    (Fault::SwapsAcks, Some(ack)) if now => held_ack = Some(ack),
                    (_, Some(ack)) => {
                        stream.write_all(&ack)?;
                        stream.write_all(held_ack.take().as_ref().map_or(&[][..], |ack| ack))?;
                    }
                    (_, None) => {}
                }
            }
            _ => {}
        }
    }
}
