package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const nginxStopLimit = 10 * time.Second

// nginxConfig is a proxy of two hops: from an address to a socket and from there to the
// sandbox. Its arguments are the directory, the address and the sandbox's.
const nginxConfig = `user root;
daemon off;
worker_processes auto;
pid %[1]s/nginx.pid;
error_log stderr warn;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/temp;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	proxy_http_version 1.1;
	proxy_set_header Connection "";
	proxy_set_header Host $http_host;
	proxy_buffers 16 64k;
	proxy_buffer_size 64k;
	proxy_busy_buffers_size 512k;
	proxy_max_temp_file_size 0;
	upstream hop { server unix:%[1]s/hop.sock; keepalive 64; }
	upstream guest { server %[3]s; keepalive 64; }
	server { listen %[2]s; location / { proxy_pass http://hop; } }
	server { listen unix:%[1]s/hop.sock; location / { proxy_pass http://guest; } }
}
`

// startNginx starts one that leads to the server in the sandbox, and returns its address.
func (b *bench) startNginx(ctx context.Context) (address string, stop func() error, err error) {
	program, err := exec.LookPath("nginx")
	if err != nil {
		const outsidePath = "/usr/sbin/nginx"
		if _, statErr := os.Stat(outsidePath); statErr != nil {
			return "", nil, fmt.Errorf("%w; `scripts/setup proxy` installs it", err)
		}
		program = outsidePath
	}
	if address, err = freeAddress(ctx); err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "nginx-")
	if err != nil {
		return "", nil, err
	}
	const mode = 0o600
	config := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(nginxConfig, dir, address, fmt.Sprintf("%s:%d", b.sandbox.GuestIP, serverPort))
	if err := os.WriteFile(config, []byte(text), mode); err != nil {
		return "", nil, err
	}
	var said bytes.Buffer
	cmd := exec.Command(program, "-c", config, "-p", dir) //nolint:noctx // it is told to end, and then waited for
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is told to end, or what it said tells
	}()
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-ended:
			return nil
		case <-time.After(nginxStopLimit):
			return errors.Join(errors.New("nginx did not stop in time"), cmd.Process.Kill())
		}
	}
	if err := awaitAnswer(ctx, "http://"+address+"/ping"); err != nil {
		return "", nil, errors.Join(fmt.Errorf("nginx: %w", err), stop(), fmt.Errorf("it said: %s", said.Bytes()))
	}
	return address, stop, nil
}
