//! What is said when the client publishes, word by word. The notation stands with [`super::check`].

use super::check;

#[test]
fn a_publish_is_acknowledged_once_its_outcome_is_known() {
    check(
        "> publish 0 q0 a
         = publish a
         > publish 7 q1 b
         = publish b
         accept b
         < puback 7
         > publish 7 q1 c
         = publish c
         refuse c
         < puback 7 0x87
         > publish 7 q2 d
         = publish d
         accept d
         < pubrec 7
         > pubrel 7
         = release 7 known
         released 7 known
         < pubcomp 7
         owing
         = false, full false",
    );
}

#[test]
fn acknowledgements_leave_in_the_order_of_their_publishes_whatever_the_order_of_outcomes() {
    check(
        "> publish 1 q1 a
         = publish a
         > publish 2 q2 b
         = publish b
         > publish 3 q1 c
         = publish c
         accept c
         refuse b
         owing
         = true, full false
         accept a
         < puback 1
         < pubrec 2 0x87
         < puback 3",
    );
}

#[test]
fn an_outcome_told_twice_or_of_a_former_connection_changes_nothing() {
    check(
        "> publish 1 q1 a
         = publish a
         > publish 2 q2 b
         = publish b
         accept b
         refuse b
         accept a
         < puback 1
         < pubrec 2
         accept a
         > publish 3 q2 c
         = publish c
         connect
         > publish 4 q1 d
         = publish d
         accept c
         accept d
         < puback 4",
    );
}

#[test]
fn a_repeated_qos_2_publish_is_handed_on_once_in_each_stage() {
    check(
        "connect v3
         > publish 1 q1 slow
         = publish slow
         > publish 2 q2 a
         = publish a
         > publish 2 q2 a dup
         accept a
         > publish 2 q2 a dup
         accept slow
         < puback 1
         < pubrec 2
         > publish 2 q2 a dup
         < pubrec 2
         > publish 2 q2 a
         < pubrec 2
         > pubrel 2
         = release 2 known
         released 2 known
         < pubcomp 2
         > publish 2 q2 b
         = publish b",
    );
}

#[test]
fn the_answer_to_a_repeat_waits_for_those_before_it() {
    check(
        "> publish 2 q2 a
         = publish a
         accept a
         < pubrec 2
         connect
         > publish 1 q1 slow
         = publish slow
         > publish 2 q2 a dup
         accept slow
         < puback 1
         < pubrec 2",
    );
}

#[test]
fn a_pubrec_that_waits_is_withdrawn_when_the_client_releases_first() {
    check(
        "connect v3
         > publish 2 q2 a
         = publish a
         accept a
         < pubrec 2
         > publish 1 q1 slow
         = publish slow
         > publish 2 q2 a dup
         > pubrel 2
         = release 2 known
         released 2 known
         < pubcomp 2
         > publish 2 q2 b
         = publish b
         accept slow
         < puback 1
         accept b
         < pubrec 2
         owing
         = false, full false",
    );
}

#[test]
fn a_refused_qos_2_publish_leaves_nothing_to_release() {
    check(
        "> publish 1 q2 a
         = publish a
         refuse a
         < pubrec 1 0x87
         > publish 1 q2 b
         = publish b
         accept b
         < pubrec 1",
    );
}

#[test]
fn an_unknown_identifier_is_released_too_and_only_v5_is_told() {
    check(
        "> pubrel 5
         = release 5 unknown
         released 5 unknown
         < pubcomp 5 0x92
         connect v3
         > pubrel 5
         = release 5 unknown
         released 5 unknown
         < pubcomp 5",
    );
}

#[test]
fn a_release_before_the_outcome_ends_the_connection_and_the_message_stays_protected() {
    check(
        "> publish 1 q2 a
         = publish a
         > pubrel 1
         = violation 0x82: a PUBREL before its PUBREC
         accept a
         < pubrec 1
         connect
         > publish 1 q2 a dup
         < pubrec 1",
    );
}

#[test]
fn after_a_reconnect_taken_messages_are_remembered_and_others_begin_anew() {
    check(
        "> publish 1 q2 a
         = publish a
         > publish 2 q2 b
         = publish b
         > publish 3 q1 c
         = publish c
         accept b
         connect
         > publish 1 q2 a dup
         = publish a
         > publish 2 q2 b dup
         > publish 3 q1 c dup
         = publish c
         accept a
         < pubrec 1
         < pubrec 2
         accept c
         < puback 3
         connect
         > pubrel 1
         = release 1 known
         > pubrel 2
         = release 2 known",
    );
}

#[test]
fn a_v5_client_beyond_its_receive_maximum_is_closed() {
    check(
        "> publish 1 q2 a
         = publish a
         accept a
         < pubrec 1
         > publish 2 q2 b
         = publish b
         refuse b
         < pubrec 2 0x87
         > publish 2 q1 b
         = publish b
         > publish 3 q2 c
         = publish c
         > publish 4 q1 d
         = publish d
         owing
         = true, full false
         > publish 0 q0 free
         = publish free
         > publish 1 q2 a dup
         > publish 5 q2 e
         = violation 0x93: more unfinished publishes than its Receive Maximum allows
         > publish 6 q1 e
         = violation 0x93: more unfinished publishes than its Receive Maximum allows
         accept b
         < puback 2
         > publish 6 q1 e
         = publish e",
    );
}

#[test]
fn what_is_released_after_a_reconnect_does_not_count_against_the_receive_maximum() {
    check(
        "> publish 1 q2 a
         = publish a
         accept a
         < pubrec 1
         connect
         > pubrel 1
         = release 1 known
         > publish 2 q2 b
         = publish b
         > publish 3 q2 c
         = publish c
         > publish 4 q2 d
         = publish d
         > publish 5 q2 e
         = publish e
         released 1 known
         < pubcomp 1
         > publish 1 q2 f
         = publish f
         > publish 6 q2 g
         = violation 0x93: more unfinished publishes than its Receive Maximum allows",
    );
}

#[test]
fn what_a_former_connection_left_unanswered_does_not_count_against_the_receive_maximum() {
    check(
        "> publish 1 q1 a
         = publish a
         > publish 2 q1 b
         = publish b
         > publish 3 q2 c
         = publish c
         connect
         > publish 1 q1 a dup
         = publish a
         > publish 2 q1 b dup
         = publish b
         > publish 3 q2 c dup
         = publish c
         > publish 4 q1 d
         = publish d
         > publish 5 q1 e
         = violation 0x93: more unfinished publishes than its Receive Maximum allows",
    );
}

#[test]
fn a_v3_client_knows_no_receive_maximum_but_is_read_no_further_when_its_window_is_full() {
    check(
        "connect v3
         > publish 1 q1 a
         = publish a
         > publish 2 q1 b
         = publish b
         > publish 3 q1 c
         = publish c
         owing
         = true, full false
         > publish 4 q1 d
         = publish d
         owing
         = true, full true
         > publish 5 q1 e
         = publish e
         accept a
         < puback 1
         accept b
         < puback 2
         owing
         = true, full false",
    );
}
