package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
)

const (
	transferBytes = 256 << 20
	speedTarget   = 300 // MB/s each way
	// growthTarget is how much more memory a transfer of any size may take, in MiB.
	growthTarget = 64

	headerLimit = 10 * time.Second
)

// files measures the transfer of a large file each way, and the memory that it takes.
func (b *bench) files(ctx context.Context) (err error) {
	id, err := b.server.create(ctx)
	if err != nil {
		return err
	}
	defer func() { err = first(err, b.server.remove(context.WithoutCancel(ctx), id)) }()
	contents := make([]byte, 1<<20) // sent again and again: making noise must not be what is measured
	_, _ = rand.NewChaCha8([32]byte{}).Read(contents)
	raw, err := startCopy(b.dir)
	if err != nil {
		return err
	}
	defer func() { err = first(err, raw.close()) }()
	before, err := b.server.memory("VmRSS:")
	if err != nil {
		return err
	}
	if err := b.server.forgetPeak(); err != nil {
		return err
	}
	var up, down, rawUp, rawDown times
	for range b.transfers {
		for _, step := range []struct {
			kept *times
			run  func() error
		}{
			{&up, func() error { return b.server.upload(ctx, id, contents) }},
			{&rawUp, func() error { return raw.upload(ctx, contents) }},
			{&down, func() error { return b.server.download(ctx, id) }},
			{&rawDown, func() error { return raw.download(ctx) }},
		} {
			began := time.Now()
			if err := step.run(); err != nil {
				return err
			}
			*step.kept = append(*step.kept, time.Since(began))
		}
	}
	peak, err := b.server.memory("VmHWM:")
	if err != nil {
		return err
	}
	guest, err := b.guestMemory(ctx, id)
	if err != nil {
		return err
	}
	b.addSpeed("upload of 256 MiB, median", up, rawUp)
	b.addSpeed("download of 256 MiB, median", down, rawDown)
	b.table.add(row{
		"memory of wrenn: before, at most", fmt.Sprintf("%.0f, %.0f MiB", before, peak), "", "",
		fmt.Sprintf("%d MiB more", growthTarget), peak-before <= growthTarget,
	})
	b.table.add(row{what: "memory of the guest daemon after", ours: fmt.Sprintf("%.0f MiB", guest)})
	return nil
}

func (b *bench) addSpeed(what string, ours, raw times) {
	mine, theirs := speed(ours.median()), speed(raw.median())
	b.table.add(row{
		what, fmt.Sprintf("%.0f MB/s", mine), fmt.Sprintf("%.0f MB/s", theirs), ratio(mine, theirs),
		fmt.Sprintf("%d MB/s", speedTarget), mine >= speedTarget,
	})
}

// speed is that of a whole transfer, in MB/s.
func speed(took time.Duration) float64 { return transferBytes / 1e6 / took.Seconds() }

// repeated reads a block again and again up to the size of a transfer.
func repeated(block []byte) io.Reader {
	return io.LimitReader(&repeater{block: block}, transferBytes)
}

type repeater struct {
	block []byte
	at    int
}

func (r *repeater) Read(p []byte) (int, error) {
	n := copy(p, r.block[r.at:])
	r.at = (r.at + n) % len(r.block)
	return n, nil
}

const guestFile = "/home/wrenn-user/large"

func (s *server) upload(ctx context.Context, id string, contents []byte) error {
	path := "/v1/sandboxes/" + id + "/files/write?path=" + url.QueryEscape(guestFile)
	return s.do(ctx, http.MethodPost, path, repeated(contents), nil)
}

func (s *server) download(ctx context.Context, id string) error {
	resp, err := s.send(ctx, http.MethodPost, "/v1/sandboxes/"+id+"/files/read", api.PathRequest{Path: guestFile})
	if err != nil {
		return err
	}
	return drain(resp)
}

// drain reads a whole transfer.
func drain(resp *http.Response) error {
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err == nil && n != transferBytes {
		err = fmt.Errorf("%d of %d bytes came", n, transferBytes)
	}
	return err
}

// memory is a figure of the server process's status, in MiB.
func (s *server) memory(field string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			var kib float64
			_, err := fmt.Sscan(rest, &kib)
			return kib / 1024, err
		}
	}
	return 0, fmt.Errorf("the server's status has no %s", field)
}

// forgetPeak makes VmHWM begin anew.
func (s *server) forgetPeak() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.cmd.Process.Pid), []byte("5"), 0)
}

// plainCopy is the raw peer of a transfer: one HTTP server between a client and a file.
type plainCopy struct {
	path   string
	url    string
	server *http.Server
	served chan error
}

func startCopy(dir string) (*plainCopy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a local address is had at once
	if err != nil {
		return nil, err
	}
	c := &plainCopy{path: filepath.Join(dir, "large"), url: "http://" + listener.Addr().String(), served: make(chan error, 1)}
	c.server = &http.Server{Handler: http.HandlerFunc(c.handle), ReadHeaderTimeout: headerLimit}
	go func() { c.served <- c.server.Serve(listener) }()
	return c, nil
}

func (c *plainCopy) close() error {
	err := c.server.Close()
	if served := <-c.served; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return errors.Join(err, os.Remove(c.path))
}

func (c *plainCopy) handle(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		http.ServeFile(w, r, c.path)
		return
	}
	file, err := os.Create(c.path)
	if err == nil {
		_, err = io.Copy(file, r.Body)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
	}
}

func (c *plainCopy) request(ctx context.Context, method string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.url, body)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		err = fmt.Errorf("the plain copy answered %s", resp.Status)
	}
	return resp, err
}

func (c *plainCopy) upload(ctx context.Context, contents []byte) error {
	resp, err := c.request(ctx, http.MethodPost, repeated(contents))
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (c *plainCopy) download(ctx context.Context) error {
	resp, err := c.request(ctx, http.MethodGet, nil)
	if err != nil {
		return err
	}
	return drain(resp)
}
