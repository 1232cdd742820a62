package main

import (
	"errors"
	"fmt"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"
	"github.com/eclipse/paho.mqtt.golang/packets"
)

type version3 struct {
	client mqtt.Client
}

// CONNACK's return codes in MQTT 5's numbers.
var returnCodes = map[error]int{
	packets.ErrorRefusedBadProtocolVersion:    0x84,
	packets.ErrorRefusedIDRejected:            0x85,
	packets.ErrorRefusedServerUnavailable:     0x88,
	packets.ErrorRefusedBadUsernameOrPassword: 0x86,
	packets.ErrorRefusedNotAuthorised:         0x87,
}

func (v *version3) connect(c command) {
	options := mqtt.NewClientOptions().AddBroker(fmt.Sprintf("tcp://%s:%d", c.Host, c.Port)).
		SetProtocolVersion(4).SetClientID(c.ClientId).SetCleanSession(c.Clean).SetAutoReconnect(c.Reconnect).
		SetKeepAlive(time.Duration(c.KeepAlive) * time.Second).SetConnectRetry(false).SetOrderMatters(true)
	if c.Username != nil {
		options.SetUsername(*c.Username)
	}
	if c.Password != nil {
		options.SetPassword(*c.Password)
	}
	if c.Will != nil {
		options.SetBinaryWill(c.Will.Topic, c.Will.Payload, c.Will.Qos, c.Will.Retain)
	}
	options.SetConnectionLostHandler(func(mqtt.Client, error) { say("closed", fields{"reason": 0}) })
	options.SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) {
		say("message", fields{"topic": m.Topic(), "payload": m.Payload(), "qos": m.Qos(), "retain": m.Retained()})
	})
	v.client = mqtt.NewClient(options)
	token := v.client.Connect().(*mqtt.ConnectToken)
	token.Wait()
	if err := token.Error(); err != nil {
		reason := 0x80
		for refusal, code := range returnCodes {
			if errors.Is(err, refusal) {
				reason = code
			}
		}
		say("refused", fields{"reason": reason})
		return
	}
	say("connected", fields{"sessionPresent": token.SessionPresent()})
}

func (v *version3) subscribe(filter string, qos byte) {
	token := v.client.Subscribe(filter, qos, nil).(*mqtt.SubscribeToken)
	token.Wait()
	say("subscribed", fields{"reasons": reasons([]byte{token.Result()[filter]})})
}

func (v *version3) unsubscribe(filter string) {
	v.client.Unsubscribe(filter).Wait()
	say("unsubscribed", fields{"reasons": []int{}})
}

func (v *version3) publish(c command) {
	token := v.client.Publish(c.Topic, c.Qos, c.Retain, c.Payload)
	go func() {
		token.Wait()
		reason := 0
		if token.Error() != nil {
			reason = 0x80
		}
		say("published", fields{"tag": c.Tag, "reason": reason})
	}()
}

func (v *version3) disconnect() {
	v.client.Disconnect(1000)
	say("closed", fields{"reason": 0})
}
