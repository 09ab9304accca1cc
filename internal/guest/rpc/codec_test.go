package rpc

import (
	"bytes"
	"encoding/json"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/wrenn-sandbox/wrenn/internal/guest/process"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// TestJSONOfOutputIsThatOfProtobuf compares the short cut with what it stands for.
func TestJSONOfOutputIsThatOfProtobuf(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	var messages []proto.Message
	for _, data := range [][]byte{nil, {}, []byte("a"), []byte("ab\n"), all} {
		for _, output := range []*processpb.ProcessEvent_DataEvent{
			{Output: &processpb.ProcessEvent_DataEvent_Stdout{Stdout: data}},
			{Output: &processpb.ProcessEvent_DataEvent_Stderr{Stderr: data}},
			{Output: &processpb.ProcessEvent_DataEvent_Pty{Pty: data}},
			{},
		} {
			event := &processpb.ProcessEvent{Event: &processpb.ProcessEvent_Data{Data: output}}
			messages = append(messages, &processpb.StartResponse{Event: event}, &processpb.ConnectResponse{Event: event})
		}
	}
	messages = append(messages, &processpb.StartResponse{}, &processpb.ConnectResponse{}, &processpb.ListResponse{},
		&processpb.StartResponse{Event: &processpb.ProcessEvent{Event: endEvent(process.End{ExitCode: -1, Status: "signal: killed"})}})
	for _, msg := range messages {
		want, err := protojson.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		got, err := jsonCodec{}.MarshalAppend([]byte("before"), msg)
		if err != nil || !bytes.HasPrefix(got, []byte("before")) {
			t.Fatalf("%s, %v", got, err)
		}
		got = got[len("before"):]
		if !bytes.Equal(withoutSpace(t, got), withoutSpace(t, want)) {
			t.Errorf("%s, want %s", got, want)
		}
		back := msg.ProtoReflect().New().Interface()
		if err := (jsonCodec{}).Unmarshal(got, back); err != nil || !proto.Equal(back, msg) {
			t.Errorf("%s is read as %v, %v", got, back, err)
		}
	}
	if err := (jsonCodec{}).Unmarshal([]byte(`{"unknown":1}`), &processpb.ListRequest{}); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
	if err := (jsonCodec{}).Unmarshal(nil, &processpb.ListRequest{}); err == nil {
		t.Error("no body at all is taken")
	}
}

func withoutSpace(t *testing.T, text []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, text); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func BenchmarkJSONOfOutput(b *testing.B) {
	msg := &processpb.StartResponse{Event: &processpb.ProcessEvent{Event: &processpb.ProcessEvent_Data{
		Data: &processpb.ProcessEvent_DataEvent{Output: &processpb.ProcessEvent_DataEvent_Stdout{Stdout: make([]byte, 256<<10)}},
	}}}
	for name, marshal := range map[string]func([]byte, any) ([]byte, error){
		"own": jsonCodec{}.MarshalAppend,
		"protojson": func(dst []byte, _ any) ([]byte, error) {
			return protojson.MarshalOptions{}.MarshalAppend(dst, msg)
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(256 << 10)
			var buf []byte
			for b.Loop() {
				out, err := marshal(buf[:0], msg)
				if err != nil {
					b.Fatal(err)
				}
				buf = out
			}
		})
	}
}
