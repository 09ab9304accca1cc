package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
)

const (
	sshPort = "49985"
	// privilegeDir is where sshd locks itself in before it knows who comes; the package
	// makes it when it starts the service.
	privilegeDir = "/run/sshd"
)

// sshConfig is all that the sshd of a run has to know. It is started for one connection
// and asks nothing of the machine's accounts.
const sshConfig = `ListenAddress %s
Port %s
HostKey %s
AuthorizedKeysFile %s
PidFile none
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
PrintLastLog no
PermitRootLogin prohibit-password
`

// openSSH starts an sshd with keys of its own and opens a terminal over it. It returns nil
// when the machine has no sshd.
func (b *bench) openSSH(ctx context.Context) (t *terminal, err error) {
	if _, err := os.Stat(b.sshd); errors.Is(err, os.ErrNotExist) {
		fmt.Printf("No %s to compare terminals with; `make bench-guest` installs it.\n", b.sshd)
		return nil, nil //nolint:nilnil // nothing is what there is
	}
	key, config, err := b.writeSSHFiles()
	if err != nil {
		return nil, err
	}
	var log bytes.Buffer
	server := exec.CommandContext(ctx, b.sshd, "-D", "-e", "-f", config)
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		return nil, err
	}
	stop := func() error {
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
		return nil
	}
	t, err = dialTerminal(ctx, key)
	if err != nil {
		return nil, errors.Join(err, stop(), fmt.Errorf("sshd said:\n%s", log.Bytes()))
	}
	hangUp := t.close
	t.close = func() error { return first(hangUp(), stop()) }
	return t, nil
}

// writeSSHFiles makes the keys of both sides and the configuration of the server.
func (b *bench) writeSSHFiles() (client ssh.Signer, config string, err error) {
	if err := os.MkdirAll(privilegeDir, 0o755); err != nil {
		return nil, "", err
	}
	dir := filepath.Join(b.dir, "ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", err
	}
	_, hostKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", err
	}
	block, err := ssh.MarshalPrivateKey(hostKey, "")
	if err != nil {
		return nil, "", err
	}
	_, clientKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, "", err
	}
	if client, err = ssh.NewSignerFromKey(clientKey); err != nil {
		return nil, "", err
	}
	config = filepath.Join(dir, "config")
	host, allowed := filepath.Join(dir, "host"), filepath.Join(dir, "allowed")
	for path, text := range map[string][]byte{
		host:    pem.EncodeToMemory(block),
		allowed: ssh.MarshalAuthorizedKey(client.PublicKey()),
		config:  fmt.Appendf(nil, sshConfig, loopback, sshPort, host, allowed),
	} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return nil, "", err
		}
	}
	return client, config, nil
}

// dialTerminal waits until sshd takes connections and opens a terminal.
func dialTerminal(ctx context.Context, key ssh.Signer) (*terminal, error) {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	conn, err := dialUntil(ctx, net.JoinHostPort(loopback, sshPort))
	if err != nil {
		return nil, err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, loopback, &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // in a network namespace of our own
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	client := ssh.NewClient(c, channels, requests)
	t, err := sshTerminal(client)
	if err == nil {
		err = t.awaitReady(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	return t, nil
}

func dialUntil(ctx context.Context, address string) (net.Conn, error) {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

func sshTerminal(client *ssh.Client) (*terminal, error) {
	session, err := client.NewSession()
	if err != nil {
		return nil, err
	}
	if err := session.RequestPty("xterm", terminalRows, terminalCols, nil); err != nil {
		return nil, err
	}
	in, err := session.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := session.Start(echoScript); err != nil {
		return nil, err
	}
	t := &terminal{name: "sshd", echoed: make(chan arrival, 1)}
	t.typed = func(_ context.Context, text []byte) error {
		_, err := in.Write(text)
		return err
	}
	t.close = func() error {
		err := client.Close()
		for range t.echoed { // until its reader has ended
		}
		return err
	}
	go readTerminal(out, t.echoed)
	return t, nil
}

func readTerminal(out io.Reader, echoed chan<- arrival) {
	defer close(echoed)
	for {
		text := make([]byte, 256)
		n, err := out.Read(text)
		if n > 0 {
			echoed <- arrival{time.Now(), text[:n]}
		}
		if err != nil {
			return
		}
	}
}
