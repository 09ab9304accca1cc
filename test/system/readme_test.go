package system_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// walkHeading is where in the README the part begins that a person follows on a running
// server; what comes before it starts that server.
const walkHeading = "## A first walk"

// commandEnd is what the shell prints, alone on a line, after each command's output.
const commandEnd = "=== end of command ==="

// What differs from one run to the next, and how the comparison writes it.
var varying = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`sb[a-z0-9]{20}`), "SANDBOX"},
	{regexp.MustCompile(`localhost:\d+/`), "localhost:PORT/"},
	{regexp.MustCompile(`(MiB|GiB) +\d+s$`), "$1 AGE"},
	{regexp.MustCompile(`^Date: .*`), "Date: NOW"},
	{regexp.MustCompile(`^(\d+)( +web)`), "PID$2"},
	{regexp.MustCompile(`^pid \d+,`), "pid PID,"},
	{regexp.MustCompile(`\[[^]]*\d+:\d+:\d+\]`), "[NOW]"},
}

func normal(line string) string {
	line = strings.TrimRight(line, " \r")
	for _, v := range varying {
		line = v.pattern.ReplaceAllString(line, v.name)
	}
	return line
}

// walk returns the console blocks of the README's walk-through: commands, and what they
// are said to print.
func walk(t *testing.T) (lines []string) {
	t.Helper()
	readme, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(readme), walkHeading)
	if !found {
		t.Fatalf("the README has no %q", walkHeading)
	}
	inside := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "```"):
			inside = line == "```console"
		case inside:
			lines = append(lines, line)
		}
	}
	return lines
}

// TestReadmeWalkThrough types the commands of the README into one shell, in their order,
// and expects to read what the README shows.
func TestReadmeWalkThrough(t *testing.T) {
	p := theProgram(t)
	dir := t.TempDir()
	if err := os.Symlink(filepath.Dir(p.bin), filepath.Join(dir, "bin")); err != nil {
		t.Fatal(err)
	}
	shell := exec.CommandContext(t.Context(), "bash")
	shell.Dir = dir
	shell.Env = append(os.Environ(), "HOME="+p.home, "XDG_CONFIG_HOME=", "WRENN_BASE_URL=", "WRENN_API_KEY=")
	input, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, printed := io.Pipe()
	shell.Stdout, shell.Stderr = printed, printed
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	read := bufio.NewScanner(output)

	var want, got, transcript []string
	for _, line := range walk(t) {
		command, isCommand := strings.CutPrefix(line, "$ ")
		if !isCommand {
			want = append(want, normal(line))
			continue
		}
		want = append(want, line)
		got = append(got, line)
		transcript = append(transcript, line)
		// A command reads no input of ours, which is the commands to come.
		if _, err := fmt.Fprintf(input, "{ %s\n} </dev/null; echo '%s'\n", command, commandEnd); err != nil {
			t.Fatal(err)
		}
		for read.Scan() && read.Text() != commandEnd {
			got = append(got, normal(read.Text()))
			transcript = append(transcript, read.Text())
		}
	}
	if err := input.Close(); err != nil {
		t.Error(err)
	}
	if err := shell.Wait(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the README differs from what is printed (-README +printed):\n%s\nThe whole run:\n%s", diff, strings.Join(transcript, "\n"))
	}
}
