package main

import (
	"context"
	"fmt"
	"net"

	"github.com/eclipse/paho.golang/paho"
)

type version5 struct {
	client *paho.Client
}

func (v *version5) connect(c command) {
	connection, err := net.Dial("tcp", net.JoinHostPort(c.Host, fmt.Sprint(c.Port)))
	if err != nil {
		panic(err)
	}
	v.client = paho.NewClient(paho.ClientConfig{
		ClientID: c.ClientId,
		Conn:     connection,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(received paho.PublishReceived) (bool, error) {
			m := received.Packet
			payload := m.Payload
			if payload == nil {
				payload = []byte{}
			}
			say("message", fields{"topic": m.Topic, "payload": payload, "qos": m.QoS, "retain": m.Retain})
			return true, nil
		}},
		OnClientError:      func(error) { say("closed", fields{"reason": 0}) },
		OnServerDisconnect: func(d *paho.Disconnect) { say("closed", fields{"reason": d.ReasonCode}) },
	})
	packet := &paho.Connect{
		ClientID:   c.ClientId,
		CleanStart: c.Clean,
		KeepAlive:  c.KeepAlive,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &c.Expiry},
	}
	if c.Username != nil {
		packet.UsernameFlag, packet.Username = true, *c.Username
	}
	if c.Password != nil {
		packet.PasswordFlag, packet.Password = true, []byte(*c.Password)
	}
	if c.Will != nil {
		packet.WillMessage =
			&paho.WillMessage{Topic: c.Will.Topic, Payload: c.Will.Payload, QoS: c.Will.Qos, Retain: c.Will.Retain}
	}
	connack, err := v.client.Connect(context.Background(), packet)
	if err != nil {
		reason := 0x80
		if connack != nil {
			reason = int(connack.ReasonCode)
		}
		say("refused", fields{"reason": reason})
		return
	}
	say("connected", fields{"sessionPresent": connack.SessionPresent})
}

func (v *version5) subscribe(filter string, qos byte) {
	suback, _ := v.client.Subscribe(context.Background(),
		&paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}})
	say("subscribed", fields{"reasons": reasons(suback.Reasons)})
}

func (v *version5) unsubscribe(filter string) {
	unsuback, _ := v.client.Unsubscribe(context.Background(), &paho.Unsubscribe{Topics: []string{filter}})
	say("unsubscribed", fields{"reasons": reasons(unsuback.Reasons)})
}

func (v *version5) publish(c command) {
	go func() {
		answer, err := v.client.Publish(context.Background(),
			&paho.Publish{Topic: c.Topic, QoS: c.Qos, Retain: c.Retain, Payload: c.Payload})
		reason := 0
		if answer != nil && answer.ReasonCode >= 0x80 {
			reason = int(answer.ReasonCode)
		} else if err != nil {
			reason = 0x80
		}
		say("published", fields{"tag": c.Tag, "reason": reason})
	}()
}

func (v *version5) disconnect() {
	v.client.Disconnect(&paho.Disconnect{})
	say("closed", fields{"reason": 0})
}
