package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// The types of messages over a WebSocket, as openapi.yaml describes them.
const (
	typeStart      = "start"
	typeStdin      = "stdin"
	typeStdinClose = "stdin_close"
	typeStop       = "stop"
	typeStdout     = "stdout"
	typeStderr     = "stderr"
	typeExit       = "exit"
	typeError      = "error"

	typeConnect = "connect"
	typeInput   = "input"
	typeResize  = "resize"
	typeKill    = "kill"
	typeStarted = "started"
	typeOutput  = "output"
	typePing    = "ping"
)

const encodingBase64 = "base64"

// clientMessage is any message of a client. What a type has no use for is not allowed
// in it.
type clientMessage struct {
	kind    string
	start   sandbox.Command      // of start
	connect sandbox.Follow       // of connect
	data    []byte               // of stdin and input
	size    sandbox.TerminalSize // of resize
	refused error                // what is wrong with the message and spoils nothing but it
}

// startMessage, stdinMessage and bareMessage are the forms of clientMessage when it is
// about a command.
type startMessage struct {
	Type       string            `json:"type"`
	Cmd        string            `json:"cmd"`
	Args       []string          `json:"args"`
	Envs       map[string]string `json:"envs"`
	Cwd        string            `json:"cwd"`
	User       string            `json:"user"`
	TimeoutSec int64             `json:"timeout_sec"`
	Tag        string            `json:"tag"`
	Stdin      bool              `json:"stdin"`
}

type stdinMessage struct {
	Type     string `json:"type"`
	Data     string `json:"data"`
	Encoding string `json:"encoding"`
}

type bareMessage struct {
	Type string `json:"type"`
}

// maxTimeout is the longest timeout_sec, as in openapi.yaml.
const maxTimeout = 315360000

// decodeCommandMessage reads one message of a client that is about a command.
func decodeCommandMessage(raw []byte) (clientMessage, error) {
	var bare bareMessage
	if err := json.Unmarshal(raw, &bare); err != nil {
		return clientMessage{}, messageFault(err)
	}
	m := clientMessage{kind: bare.Type}
	switch bare.Type {
	case typeStart:
		var s startMessage
		if err := decodeStrictly(raw, &s); err != nil {
			return clientMessage{}, err
		}
		if err := checkTimeout(s.TimeoutSec); err != nil {
			return clientMessage{}, err
		}
		m.start = sandbox.Command{
			Cmd: s.Cmd, Args: s.Args, Env: s.Envs, Cwd: s.Cwd, User: s.User, Tag: s.Tag,
			Timeout: seconds(s.TimeoutSec), Stdin: s.Stdin,
		}
	case typeStdin:
		var s stdinMessage
		if err := decodeStrictly(raw, &s); err != nil {
			return clientMessage{}, err
		}
		var err error
		if m.data, err = decodeData(s); err != nil {
			return clientMessage{}, err
		}
	case typeStdinClose, typeStop:
		if err := decodeStrictly(raw, &bare); err != nil {
			return clientMessage{}, err
		}
	default:
		return clientMessage{}, fault.New(fault.InvalidRequest, "there is no message type %q; there are start, stdin, stdin_close and stop", bare.Type)
	}
	return m, nil
}

func checkTimeout(sec int64) error {
	if sec < 0 || sec > maxTimeout {
		return fault.New(fault.InvalidRequest, "field \"timeout_sec\" must be 0 to %d", maxTimeout)
	}
	return nil
}

func decodeStrictly(raw []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return messageFault(err)
	}
	return nil
}

func decodeData(s stdinMessage) ([]byte, error) {
	switch s.Encoding {
	case "", "utf-8":
		return []byte(s.Data), nil
	case encodingBase64:
		data, err := base64.StdEncoding.DecodeString(s.Data)
		if err != nil {
			return nil, fault.Wrap(err, fault.InvalidRequest, "field \"data\" is not base64")
		}
		return data, nil
	}
	return nil, fault.New(fault.InvalidRequest, "field \"encoding\" must be utf-8 or base64")
}

// messageFault says what is wrong with a message.
func messageFault(err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) && wrong.Field != "" {
		return fault.Wrap(err, fault.InvalidRequest, "field %q of the message cannot be a %s", wrong.Field, wrong.Value)
	}
	// The decoder has no other way to tell of a field that it does not know.
	if _, name, ok := strings.Cut(err.Error(), "unknown field "); ok {
		return fault.Wrap(err, fault.InvalidRequest, "this type of message has no field %s", name)
	}
	return fault.Wrap(err, fault.InvalidRequest, "the message is not a JSON object with a \"type\"")
}
