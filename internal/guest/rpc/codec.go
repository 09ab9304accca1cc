package rpc

import (
	"encoding/base64"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// jsonCodec is Connect's JSON codec with a short cut for the output of processes, which is
// nearly all that travels in JSON: protojson encodes it into a string of its own and then
// looks at each of its characters for what must be escaped, of which base64 has none.
type jsonCodec struct{}

var _ connect.Codec = jsonCodec{}

// Name is how Connect knows the codec.
func (jsonCodec) Name() string { return "json" }

// IsBinary says that messages are text.
func (jsonCodec) IsBinary() bool { return false }

// Marshal returns message as JSON.
func (c jsonCodec) Marshal(message any) ([]byte, error) { return c.MarshalAppend(nil, message) }

// MarshalAppend appends message as JSON. Connect calls it instead of Marshal, to use its
// buffers again.
func (jsonCodec) MarshalAppend(dst []byte, message any) ([]byte, error) {
	if field, data := outputOf(message); field != "" {
		dst = append(append(append(dst, `{"event":{"data":{"`...), field...), `":"`...)
		return append(base64.StdEncoding.AppendEncode(dst, data), `"}}}`...), nil
	}
	m, ok := message.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a protobuf message", message)
	}
	return protojson.MarshalOptions{}.MarshalAppend(dst, m)
}

// Unmarshal reads a message from JSON. Clients may know fields that the daemon does not.
func (jsonCodec) Unmarshal(data []byte, message any) error {
	m, ok := message.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is not a protobuf message", message)
	}
	if len(data) == 0 {
		return errors.New("zero-length payload is not a valid JSON object")
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m)
}

// outputOf returns the name of the field and the data of a message that is a piece of
// output and nothing else.
func outputOf(message any) (field string, data []byte) {
	var event *processpb.ProcessEvent
	switch m := message.(type) {
	case *processpb.StartResponse:
		event = m.GetEvent()
	case *processpb.ConnectResponse:
		event = m.GetEvent()
	}
	switch output := event.GetData().GetOutput().(type) {
	case *processpb.ProcessEvent_DataEvent_Stdout:
		return "stdout", output.Stdout
	case *processpb.ProcessEvent_DataEvent_Stderr:
		return "stderr", output.Stderr
	case *processpb.ProcessEvent_DataEvent_Pty:
		return "pty", output.Pty
	}
	return "", nil
}
