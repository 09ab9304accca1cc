// Package atomicfile replaces files so that a reader, and whoever looks after a crash,
// sees the old content or the new one and never a part. It must not know what is in them.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces path with data and mode. After it returns, a crash of this process
// changes nothing; after a loss of power the file may be the old one, or empty.
func Write(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, func(*os.File) error { return nil })
}

// WriteDurable is Write that returns when the new content has reached the disk.
func WriteDurable(path string, data []byte, mode fs.FileMode) error {
	if err := write(path, data, mode, (*os.File).Sync); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Pattern matches the names of files that a killed process may have left half-written.
const Pattern = ".partial-*"

func write(path string, data []byte, mode fs.FileMode, finish func(*os.File) error) error {
	temp, err := os.CreateTemp(filepath.Dir(path), Pattern)
	if err != nil {
		return err
	}
	_, err = temp.Write(data)
	// CreateTemp's own mode is 0600; Chmod is not subject to the umask.
	err = errors.Join(err, temp.Chmod(mode))
	if err == nil {
		err = finish(temp)
	}
	if err = errors.Join(err, temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(temp.Name()))
	}
	return err
}
