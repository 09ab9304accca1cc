package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

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
)

const encodingBase64 = "base64"

// clientMessage is any message of a client. What a type has no use for is not allowed
// in it.
type clientMessage struct {
	kind  string
	start sandbox.Command // of start
	stdin []byte          // of stdin
}

// startMessage, stdinMessage and bareMessage are the forms of clientMessage.
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

// decodeMessage reads one message of a client.
func decodeMessage(raw []byte) (clientMessage, error) {
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
		if s.TimeoutSec < 0 || s.TimeoutSec > maxTimeout {
			return clientMessage{}, fault.New(fault.InvalidRequest, "field \"timeout_sec\" must be 0 to %d", maxTimeout)
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
		if m.stdin, err = decodeData(s); err != nil {
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

// serverMessage is any message of the server.
type serverMessage struct {
	Type     string  `json:"type"`
	PID      uint32  `json:"pid,omitempty"`
	Tag      string  `json:"tag,omitempty"`
	Data     *string `json:"data,omitempty"`
	Encoding string  `json:"encoding,omitempty"`
	Code     string  `json:"code,omitempty"`
	ExitCode *int32  `json:"exit_code,omitempty"`
	Signal   string  `json:"signal,omitempty"`
	TimedOut bool    `json:"timed_out,omitempty"`
}

func errorMessage(err error) serverMessage {
	text := fault.MessageOf(err)
	return serverMessage{Type: typeError, Data: &text, Code: string(fault.CodeOf(err))}
}

func exitMessage(e sandbox.Exit) serverMessage {
	return serverMessage{Type: typeExit, ExitCode: &e.Code, Signal: e.Signal, TimedOut: e.TimedOut}
}

func outputMessage(kind string, data []byte) serverMessage {
	m := serverMessage{Type: kind}
	var text string
	if utf8.Valid(data) {
		text = string(data)
	} else {
		text, m.Encoding = base64.StdEncoding.EncodeToString(data), encodingBase64
	}
	m.Data = &text
	return m
}

// joiner puts characters together again that were split between two chunks of a stream.
// The zero value is ready.
type joiner struct {
	held []byte // the beginning of a character, at most utf8.UTFMax-1 bytes
}

// push returns all of the stream so far that was not yet returned, but for the beginning
// of a character at its end, which waits for its rest.
func (j *joiner) push(chunk []byte) []byte {
	data := chunk
	if len(j.held) > 0 {
		data = slices.Concat(j.held, chunk)
		j.held = nil
	}
	whole := len(data) - partialRune(data)
	j.held = append(j.held, data[whole:]...)
	return data[:whole]
}

// flush returns what still waits when the stream has ended.
func (j *joiner) flush() []byte {
	held := j.held
	j.held = nil
	return held
}

// partialRune is how many bytes at the end of data are the beginning of a character that
// is not complete.
func partialRune(data []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(data); n++ {
		tail := data[len(data)-n:]
		if utf8.RuneStart(tail[0]) {
			if utf8.FullRune(tail) {
				return 0
			}
			return n
		}
	}
	return 0
}
