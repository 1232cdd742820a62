// Drives Eclipse Paho for Go, one library for each version of MQTT, by JSON lines; `clients.rs` describes them.
package main

import (
	"bufio"
	"encoding/json"
	"os"
	"sync"
)

type will struct {
	Topic   string
	Payload []byte
	Qos     byte
	Retain  bool
}

type command struct {
	Do        string
	Host      string
	Port      int
	Version   int
	ClientId  string
	Username  *string
	Password  *string
	Clean     bool
	Expiry    uint32
	KeepAlive uint16
	Reconnect bool
	Will      *will
	Filter    string
	Topic     string
	Payload   []byte
	Qos       byte
	Retain    bool
	Tag       uint64
}

type library interface {
	connect(command)
	subscribe(filter string, qos byte)
	unsubscribe(filter string)
	publish(command)
	disconnect()
}

type fields map[string]any

var output sync.Mutex

func say(event string, with fields) {
	with["event"] = event
	line, err := json.Marshal(with)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	os.Stdout.Write(append(line, '\n'))
}

func reasons(codes []byte) []int {
	numbers := []int{}
	for _, code := range codes {
		numbers = append(numbers, int(code))
	}
	return numbers
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	var client library
	for lines.Scan() {
		var command command
		if err := json.Unmarshal(lines.Bytes(), &command); err != nil {
			panic(err)
		}
		switch command.Do {
		case "connect":
			client = &version3{}
			if command.Version == 5 {
				client = &version5{}
			}
			client.connect(command)
		case "subscribe":
			client.subscribe(command.Filter, command.Qos)
		case "unsubscribe":
			client.unsubscribe(command.Filter)
		case "publish":
			client.publish(command)
		case "disconnect":
			client.disconnect()
		}
	}
}
