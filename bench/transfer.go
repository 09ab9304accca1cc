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
	"time"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/bench/product"
	"github.com/wrenn-sandbox/wrenn/bench/report"
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
	id, err := b.server.Create(ctx, api.CreateSandboxRequest{})
	if err != nil {
		return err
	}
	defer func() { err = first(err, b.server.Remove(context.WithoutCancel(ctx), id)) }()
	contents := make([]byte, 1<<20) // sent again and again: making noise must not be what is measured
	_, _ = rand.NewChaCha8([32]byte{}).Read(contents)
	raw, err := startCopy(b.dir)
	if err != nil {
		return err
	}
	defer func() { err = first(err, raw.close()) }()
	before, err := b.server.Memory("VmRSS:")
	if err != nil {
		return err
	}
	if err := b.server.ForgetPeak(); err != nil {
		return err
	}
	var up, down, rawUp, rawDown report.Times
	for range b.transfers {
		for _, step := range []struct {
			kept *report.Times
			run  func() error
		}{
			{&up, func() error { return upload(ctx, b.server, id, contents) }},
			{&rawUp, func() error { return raw.upload(ctx, contents) }},
			{&down, func() error { return download(ctx, b.server, id) }},
			{&rawDown, func() error { return raw.download(ctx) }},
		} {
			began := time.Now()
			if err := step.run(); err != nil {
				return err
			}
			*step.kept = append(*step.kept, time.Since(began))
		}
	}
	peak, err := b.server.Memory("VmHWM:")
	if err != nil {
		return err
	}
	guest, err := b.guestMemory(ctx, id)
	if err != nil {
		return err
	}
	b.addSpeed("upload of 256 MiB, median", up, rawUp)
	b.addSpeed("download of 256 MiB, median", down, rawDown)
	b.table.Add(report.Row{
		What: "memory of wrenn: before, at most", Ours: fmt.Sprintf("%.0f, %.0f MiB", before, peak),
		Target: fmt.Sprintf("%d MiB more", growthTarget), Met: peak-before <= growthTarget,
	})
	b.table.Add(report.Row{What: "memory of the guest daemon after", Ours: fmt.Sprintf("%.0f MiB", guest)})
	return nil
}

func (b *bench) addSpeed(what string, ours, raw report.Times) {
	mine, theirs := speed(ours.Median()), speed(raw.Median())
	b.table.Add(report.Row{
		What: what, Ours: fmt.Sprintf("%.0f MB/s", mine),
		Raw: fmt.Sprintf("%.0f MB/s", theirs), Ratio: report.Ratio(mine, theirs),
		Target: fmt.Sprintf("%d MB/s", speedTarget), Met: mine >= speedTarget,
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

func upload(ctx context.Context, s *product.Server, id string, contents []byte) error {
	path := "/v1/sandboxes/" + id + "/files/write?path=" + url.QueryEscape(guestFile)
	return s.Do(ctx, http.MethodPost, path, repeated(contents), nil)
}

func download(ctx context.Context, s *product.Server, id string) error {
	resp, err := s.Send(ctx, http.MethodPost, "/v1/sandboxes/"+id+"/files/read", api.PathRequest{Path: guestFile})
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

// plainCopy is the raw peer of a transfer: one HTTP server between a client and a file.
type plainCopy struct {
	path   string
	url    string
	server *http.Server
	client *http.Client
	served chan error
}

func startCopy(dir string) (*plainCopy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // a local address is had at once
	if err != nil {
		return nil, err
	}
	c := &plainCopy{path: filepath.Join(dir, "large"), url: "http://" + listener.Addr().String(), served: make(chan error, 1)}
	c.client = &http.Client{Transport: &http.Transport{}}
	c.server = &http.Server{Handler: http.HandlerFunc(c.handle), ReadHeaderTimeout: headerLimit}
	go func() { c.served <- c.server.Serve(listener) }()
	return c, nil
}

func (c *plainCopy) close() error {
	c.client.CloseIdleConnections()
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
	resp, err := c.client.Do(req)
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
