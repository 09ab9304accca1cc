package rpc

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/wrenn-sandbox/wrenn/internal/guest/identity"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// flushes is an answer that notes what had been written at each flush.
type flushes struct {
	*httptest.ResponseRecorder
	at []string
}

func (f *flushes) Flush() { f.at = append(f.at, f.Body.String()) }

// The start of a process is told at once, its end together with that of the stream.
func TestLastMessagesTravelTogether(t *testing.T) {
	server, handler := New(Config{
		Logger: slog.New(slog.DiscardHandler),
		Users:  identity.NewUsers("/etc/passwd", "/etc/group"),
	})
	defer server.Close()
	message, err := proto.Marshal(&processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", "echo printed; exit 3"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/process.Process/Start", bytes.NewReader(append(body, message...)))
	r.Header.Set("Content-Type", "application/connect+proto")
	w := &flushes{ResponseRecorder: httptest.NewRecorder()}
	handler.ServeHTTP(w, r)
	if end := "exit status 3"; !strings.Contains(w.Body.String(), end) || !strings.HasSuffix(w.Body.String(), "{}") {
		t.Fatalf("the answer is %q", w.Body)
	}
	if len(w.at) != 2 || w.at[0] == "" || strings.Contains(w.at[0], "printed") || !strings.HasSuffix(w.at[1], "printed\n") {
		t.Errorf("sent off when there was %q", w.at)
	}
}
