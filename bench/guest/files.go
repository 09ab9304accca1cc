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
)

const (
	fileBytes  = 512 << 20
	fileTarget = 1000 // MB/s each way
	// headerLimit is how long the raw peer waits for a request's headers.
	headerLimit = 10 * time.Second
)

// files measures the transfer of a file into memory and out of it.
func (b *bench) files(ctx context.Context) (err error) {
	contents := make([]byte, clientBuffer) // sent again and again: making noise must not be what is measured
	_, _ = rand.NewChaCha8([32]byte{}).Read(contents)
	raw, err := startCopy(ctx)
	if err != nil {
		return err
	}
	defer func() { err = first(err, raw.close()) }()
	all := append([]*daemon{}, b.daemons()...)
	all = append(all, raw.client)
	up, down := make([]times, len(all)), make([]times, len(all))
	for round := range b.rounds {
		for _, i := range turns(round, len(all)) {
			d := all[i]
			path := filepath.Join(b.dir, "file")
			took, err := d.upload(ctx, path, contents)
			if err != nil {
				return fmt.Errorf("upload: %w", err)
			}
			up[i] = append(up[i], took)
			if took, err = d.download(ctx, path); err != nil {
				return fmt.Errorf("download: %w", err)
			}
			down[i] = append(down[i], took)
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	b.addFiles("a file up, MB/s", up)
	b.addFiles("a file down, MB/s", down)
	return nil
}

// addFiles adds a row of speeds; the last is that of the raw peer.
func (b *bench) addFiles(what string, all []times) {
	var speeds []float64
	for _, t := range all {
		speeds = append(speeds, t.speed(fileBytes))
	}
	count := len(b.daemons())
	r := row{
		what: what, raw: compare("%.0f", speeds[0], speeds[count]),
		target: fmt.Sprintf("≥ %d", fileTarget), verdict: verdict(speeds[0] >= fileTarget),
	}
	r.beside("%.0f", speeds[:count], higher)
	b.table.add(r)
}

func (d *daemon) file(path string) string {
	return d.url("/files?" + url.Values{"path": {path}, "username": {"root"}}.Encode())
}

func (d *daemon) upload(ctx context.Context, path string, contents []byte) (time.Duration, error) {
	body := io.LimitReader(&again{contents: contents}, fileBytes)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.file(path), body)
	if err != nil {
		return 0, err
	}
	request.ContentLength = fileBytes
	request.Header.Set("Content-Type", "application/octet-stream")
	began := time.Now()
	response, err := d.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", response.Status, answer)
	}
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if info.Size() != fileBytes {
		return 0, fmt.Errorf("%d of %d bytes were written", info.Size(), fileBytes)
	}
	return took, nil
}

func (d *daemon) download(ctx context.Context, path string) (time.Duration, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, d.file(path), nil)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	response, err := d.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, errors.New(response.Status)
	}
	n, err := io.CopyBuffer(onlyWriter{io.Discard}, response.Body, make([]byte, clientBuffer))
	if err != nil {
		return 0, err
	}
	if n != fileBytes {
		return 0, fmt.Errorf("%d of %d bytes came", n, fileBytes)
	}
	return time.Since(began), nil
}

// onlyWriter hides how else a writer could be filled, so that the buffer given is used.
type onlyWriter struct{ io.Writer }

// again reads the same bytes again and again.
type again struct {
	contents []byte
	at       int
}

func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.contents[a.at:])
	a.at = (a.at + n) % len(a.contents)
	return n, nil
}

// plainCopy is the raw peer: an HTTP server in this process that writes what comes to a
// file and sends it back.
type plainCopy struct {
	server *http.Server
	client *daemon
}

func startCopy(ctx context.Context) (*plainCopy, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(loopback, "0"))
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /files", func(w http.ResponseWriter, r *http.Request) {
		file, err := os.Open(r.URL.Query().Get("path"))
		if err != nil {
			panic(err)
		}
		defer file.Close()
		_, _ = io.Copy(w, file) // the client notices what is missing
	})
	mux.HandleFunc("POST /files", func(_ http.ResponseWriter, r *http.Request) {
		file, err := os.Create(r.URL.Query().Get("path"))
		if err != nil {
			panic(err)
		}
		defer file.Close()
		if _, err := io.CopyBuffer(onlyWriter{file}, r.Body, make([]byte, clientBuffer)); err != nil {
			panic(err)
		}
	})
	c := &plainCopy{
		server: &http.Server{Handler: mux, ReadHeaderTimeout: headerLimit},
		client: newClient(listener.Addr().String()),
	}
	go func() { _ = c.server.Serve(listener) }() // until close
	return c, nil
}

func (c *plainCopy) close() error {
	c.client.client.CloseIdleConnections()
	return c.server.Close()
}
