//! What is said when the client receives, and besides, word by word. The notation stands with [`super::check`].

use super::check;

#[test]
fn a_delivery_ends_with_its_last_acknowledgement() {
    check(
        "deliver q0 a
         < publish 0 q0 a
         deliver q1 b
         < publish 1 q1 b
         deliver q2 c
         < publish 2 q2 c
         window
         = 8, 2 in flight
         > puback 1
         = delivered
         > pubrec 2
         < pubrel 2
         window
         = 9, 1 in flight
         > pubcomp 2
         = delivered
         window
         = 10, 0 in flight
         > puback 1
         > pubcomp 2",
    );
}

#[test]
fn acknowledgements_in_any_order_finish_their_own_message() {
    check(
        "deliver q1 a
         < publish 1 q1 a
         deliver q2 b
         < publish 2 q2 b
         deliver q1 c
         < publish 3 q1 c
         > puback 3
         = delivered
         > pubrec 2
         < pubrel 2
         > puback 1
         = delivered
         > pubcomp 2
         = delivered",
    );
}

#[test]
fn nothing_is_sent_beyond_the_window_but_qos_0() {
    check(
        "connect window 2
         deliver q1 a
         < publish 1 q1 a
         deliver q2 b
         < publish 2 q2 b
         deliver q1 c
         = WindowFull
         deliver q0 d
         < publish 0 q0 d
         > pubrec 2
         < pubrel 2
         deliver q1 c
         = WindowFull
         > pubcomp 2
         = delivered
         deliver q1 c
         < publish 3 q1 c",
    );
}

#[test]
fn a_refusing_pubrec_ends_the_exchange() {
    check(
        "deliver q2 a
         < publish 1 q2 a
         > pubrec 1 0x87
         = delivered
         > pubcomp 1
         > pubrec 1 0x87
         window
         = 10, 0 in flight
         deliver q2 b
         < publish 2 q2 b
         > pubrec 2 0x10
         < pubrel 2",
    );
}

#[test]
fn a_repeated_pubrec_is_answered_again() {
    check(
        "deliver q2 a
         < publish 1 q2 a
         > pubrec 1
         < pubrel 1
         > pubrec 1
         < pubrel 1
         > pubcomp 1 0x92
         = delivered
         > pubrec 1
         < pubrel 1 0x92
         connect v3
         > pubrec 1
         < pubrel 1",
    );
}

#[test]
fn an_acknowledgement_of_the_wrong_kind_ends_the_connection_and_finishes_nothing() {
    for (quality, wrong) in [("q2", "puback"), ("q1", "pubrec"), ("q1", "pubrec 1 0x87")] {
        let wrong = if wrong.contains(' ') { wrong.to_owned() } else { format!("{wrong} 1") };
        check(&format!(
            "deliver {quality} a
             < publish 1 {quality} a
             > {wrong}
             = violation 0x82: an acknowledgement that does not belong to its message's QoS
             window
             = 9, 1 in flight
             connect
             resend
             < publish 1 {quality} a dup"
        ));
    }
}

#[test]
fn a_pubcomp_before_its_pubrec_finishes_nothing() {
    check(
        "deliver q2 a
         < publish 1 q2 a
         > pubcomp 1
         > pubrec 1
         < pubrel 1
         > pubcomp 1
         = delivered
         deliver q1 b
         < publish 2 q1 b
         > pubcomp 2
         window
         = 9, 1 in flight",
    );
}

#[test]
fn after_a_reconnect_all_that_is_unfinished_is_sent_again_before_anything_new() {
    check(
        "deliver q1 a
         < publish 1 q1 a
         deliver q2 b
         < publish 2 q2 b
         deliver q2 c
         < publish 3 q2 c
         > pubrec 3
         < pubrel 3
         connect v3
         resend
         < pubrel 3
         < publish 1 q1 a dup
         < publish 2 q2 b dup
         resend
         deliver q1 d
         < publish 4 q1 d",
    );
}

#[test]
fn a_window_that_shrank_holds_for_what_is_sent_again_but_not_for_releases() {
    check(
        "deliver q2 a
         < publish 1 q2 a
         deliver q1 b
         < publish 2 q1 b
         deliver q1 c
         < publish 3 q1 c
         deliver q2 d
         < publish 4 q2 d
         > pubrec 1
         < pubrel 1
         > pubrec 4
         < pubrel 4
         connect window 1
         resend
         < pubrel 1
         < pubrel 4
         = more
         deliver q1 new
         = WindowFull
         > pubcomp 1
         = delivered
         resend
         = more
         > pubcomp 4
         = delivered
         resend
         < publish 2 q1 b dup
         = more
         window
         = 0, 2 in flight
         > puback 2
         = delivered
         resend
         < publish 3 q1 c dup
         > puback 3
         = delivered
         deliver q1 new
         < publish 5 q1 new",
    );
}

#[test]
fn an_acknowledgement_that_comes_before_its_repeat_spares_it() {
    check(
        "deliver q1 a
         < publish 1 q1 a
         deliver q2 b
         < publish 2 q2 b
         deliver q1 c
         < publish 3 q1 c
         connect
         > puback 1
         = delivered
         > pubrec 2
         < pubrel 2
         resend
         < publish 3 q1 c dup
         window
         = 8, 2 in flight",
    );
}

#[test]
fn an_expired_message_is_neither_sent_nor_sent_again() {
    check(
        "deliver q1 a expires 5
         < publish 1 q1 a expires 5
         deliver q2 b expires 5
         < publish 2 q2 b expires 5
         deliver q1 c expires 9
         < publish 3 q1 c expires 9
         deliver q1 late expires 0
         = Dropped(Expired)
         at 5000
         connect window 2
         resend
         < pubrel 2
         < publish 3 q1 c dup expires 4
         = dropped 2 expired, 0 too large
         > pubcomp 2 0x92
         = delivered
         window
         = 1, 1 in flight",
    );
}

#[test]
fn what_the_client_has_released_is_finished_though_it_has_expired() {
    check(
        "deliver q2 a expires 5
         < publish 1 q2 a expires 5
         > pubrec 1
         < pubrel 1
         at 9000
         connect
         resend
         < pubrel 1
         > pubcomp 1
         = delivered",
    );
}

#[test]
fn a_message_that_became_too_large_gives_its_place_to_others() {
    check(
        "deliver q1 a-long-payload
         < publish 1 q1 a-long-payload
         deliver q2 another-long-payload
         < publish 2 q2 another-long-payload
         deliver q1 b
         < publish 3 q1 b
         connect window 1 packets 16
         resend
         < pubrel 2
         = more
         = dropped 0 expired, 2 too large
         > pubcomp 2
         = delivered
         resend
         < publish 3 q1 b dup
         deliver q0 a-long-payload
         = Dropped(TooLarge)
         > puback 3
         = delivered
         deliver q1 a-long-payload
         = Dropped(TooLarge)
         deliver q1 c
         < publish 4 q1 c",
    );
}

#[test]
fn identifiers_go_round_and_pass_over_those_in_use() {
    check(
        "deliver q1 straggler
         < publish 1 q1 straggler
         deliver q2 second
         < publish 2 q2 second
         burn 65533
         deliver q1 a
         < publish 3 q1 a
         > puback 1
         = delivered
         burn 65532
         deliver q1 b
         < publish 1 q1 b
         deliver q1 c
         < publish 4 q1 c
         > pubrec 2
         < pubrel 2
         > puback 3
         = delivered
         window
         = 7, 3 in flight",
    );
}

// Everything else.

#[test]
fn silence_counts_from_the_last_packet_one_and_a_half_keep_alives() {
    check(
        "deadline
         = None
         at 1000
         connect keepalive 10
         deadline
         = Some(16000)
         at 5000
         > pingreq
         < pingresp
         deadline
         = Some(20000)
         at 6000
         deliver q0 a
         < publish 0 q0 a
         deadline
         = Some(20000)
         > puback 9
         deadline
         = Some(21000)
         at 20000
         excuse
         deadline
         = Some(35000)",
    );
}

#[test]
fn subscriptions_are_answered_in_the_words_of_the_version() {
    check(
        "> subscribe 5 a/+
         = subscribe a/+
         subscribed 5 0x01 0x87
         < suback 5 0x01 0x87
         > unsubscribe 6 a/+
         = unsubscribe a/+
         unsubscribed 6 0x11
         < unsuback 6 0x11
         connect v3
         > subscribe 5 a/+
         = subscribe a/+
         subscribed 5 0x02 0x87
         < suback 5 0x02 0x80
         > unsubscribe 6 a/+
         = unsubscribe a/+
         unsubscribed 6 0x11
         < unsuback 6",
    );
}

#[test]
fn only_a_plain_goodbye_discards_the_will() {
    check(
        "> disconnect
         = goodbye, will discarded
         > disconnect 0x00 30
         = goodbye, will discarded, expires 30
         > disconnect 0x04
         = goodbye, will kept
         > disconnect 0x80
         = goodbye, will kept
         connect v3
         > disconnect
         = goodbye, will discarded",
    );
}

#[test]
fn packets_out_of_place_end_the_connection() {
    check(
        "> connect
         = violation 0x82: a second CONNECT
         > suback
         = violation 0x82: a packet that only a server may send
         > auth
         = violation 0x82: AUTH without an authentication method
         owing
         = false, full false",
    );
}

#[test]
fn an_alias_stands_for_its_topic_until_the_connection_ends() {
    check(
        "> publish 0 q0 a as=1
         = violation 0x82: a topic alias that stands for nothing
         > publish 0 q0 a alias=1
         = publish a
         > publish 0 q0 b as=1
         = publish b
         > publish 0 q0 c alias=17
         = violation 0x94: a topic alias above the Topic Alias Maximum
         connect
         > publish 0 q0 d as=1
         = violation 0x82: a topic alias that stands for nothing",
    );
}

#[test]
fn a_topic_is_written_once_to_a_client_that_takes_aliases() {
    check(
        "connect aliases 1
         deliver q1 a
         < publish 1 q1 a alias=1
         deliver q0 b
         < publish 0 q0 b as=1
         connect aliases 1
         resend
         < publish 1 q1 a dup alias=1",
    );
}

#[test]
fn an_alias_that_makes_a_packet_too_large_is_left_out() {
    check(
        "connect packets 14 aliases 1
         deliver q1 pay
         < publish 1 q1 pay alias=1
         connect packets 13 aliases 1
         resend
         < publish 1 q1 pay dup",
    );
}
