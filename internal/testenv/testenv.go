// Package testenv finds what tests of real sandboxes run: the built programs and the
// base image. It is for tests only. What is missing fails a test with the command that
// makes it; it never skips.
package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Bin returns the path of a program that `make build` makes, such as "runsc". They are
// looked for in the directory WRENN_TEST_BIN, or in bin at the top of the tree.
func Bin(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(dir("WRENN_TEST_BIN", "bin"), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; `make build` makes it", err)
	}
	return path
}

// Images returns the directory that holds the built base image: WRENN_TEST_IMAGES, or
// .cache/images at the top of the tree.
func Images(t testing.TB) string {
	t.Helper()
	path := dir("WRENN_TEST_IMAGES", filepath.Join(".cache", "images"))
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; `make image` makes it", err)
	}
	return path
}

// without names, separated by commas, programs that a place where tests run is known to lack.
// test/guest sets it in the sandbox.
const without = "WRENN_TEST_WITHOUT"

// Program returns the path of a program of the system that `make setup` installs. A test
// that needs one which this place is known to lack is skipped.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
	case slices.Contains(strings.Split(os.Getenv(without), ","), name):
		t.Skipf("%v, as %s says", err, without)
	default:
		t.Fatalf("%v; `make setup` brings it", err)
	}
	return path
}

func dir(variable, fallback string) string {
	if d := os.Getenv(variable); d != "" {
		return d
	}
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..", fallback)
}
