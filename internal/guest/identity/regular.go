package identity

import (
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// maxFile bounds what is read of one of the system's files, in bytes.
const maxFile = 16 << 20

// What is wrong with a file that is not what it should be.
var (
	errNotRegular = errors.New("is not a regular file")
	errTooLarge   = errors.New("is larger than 16 MiB")
)

// openRegular opens a file of the system. Root in the sandbox may have put anything in its
// place; opening or reading it never waits, as it would for a named pipe or a device.
func openRegular(path string, flags int) (*os.File, os.FileInfo, error) {
	wrong := func(err error) error { return &os.PathError{Op: "open", Path: path, Err: err} }
	// Before it is opened, since to open some devices is to do something already.
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, nil, wrong(errNotRegular)
	}
	file, err := os.OpenFile(path, flags|unix.O_NONBLOCK|unix.O_NOCTTY, fileMode)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = wrong(errNotRegular)
	}
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	// Some of the kernel's files pass for regular ones and wait for news; others know no
	// deadlines, and need none.
	_ = file.SetDeadline(time.Unix(1, 0))
	return file, info, nil
}

// readFile reads a regular file of at most maxFile whole.
func readFile(path string) ([]byte, error) {
	file, info, err := openRegular(path, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	large := &os.PathError{Op: "read", Path: path, Err: errTooLarge}
	if info.Size() > maxFile {
		return nil, large
	}
	// One byte more, since the size of the kernel's own files is 0 and any file may grow.
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = large
	}
	if err != nil {
		return nil, err
	}
	return data, nil
}

// overwrite writes a file in place, where it cannot be replaced.
func overwrite(path, content string) error {
	file, _, err := openRegular(path, os.O_WRONLY|os.O_CREATE)
	if err != nil {
		return err
	}
	err = file.Truncate(0) // not before it is known what it is
	if err == nil {
		_, err = file.WriteString(content)
	}
	return errors.Join(err, file.Close())
}
