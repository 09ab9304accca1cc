// Package profile keeps the client profile: where a person's Wrenn server is and with
// which key to call it. `wrenn up` writes it, the client commands read it. The package
// must not know what is done with either.
package profile

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/wrenn-sandbox/wrenn/internal/atomicfile"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// The key is a secret of the person who owns the profile.
const (
	fileMode = 0o600
	dirMode  = 0o700
)

// Profile is what a client needs to call a server. The server's credentials.json has the
// same shape.
type Profile struct {
	// APIURL is the server's base address, such as http://127.0.0.1:7700, without a path.
	APIURL string `json:"api_url"`
	APIKey string `json:"api_key"`
}

// Path is where the profile of the person who runs this program is:
// $XDG_CONFIG_HOME/wrenn/profile.json, or ~/.config/wrenn/profile.json.
func Path() (string, error) {
	// The XDG base directory specification wants relative paths ignored.
	dir := os.Getenv("XDG_CONFIG_HOME")
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fault.Wrap(err, fault.InvalidRequest, "no place for the client profile: set HOME or XDG_CONFIG_HOME")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "wrenn", "profile.json"), nil
}

// Read returns the profile at path. The error is NotFound when there is none and
// InvalidRequest when it cannot be used.
func Read(path string) (Profile, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Profile{}, fault.Wrap(err, fault.NotFound, "there is no client profile")
	} else if err != nil {
		return Profile{}, fault.Wrap(err, fault.Internal, "cannot read the client profile")
	}
	var p Profile
	if err := json.Unmarshal(text, &p); err != nil {
		return Profile{}, fault.Wrap(err, fault.InvalidRequest, "the client profile %s is not JSON; remove it and start `wrenn up` again", path)
	}
	if p.APIURL == "" || p.APIKey == "" {
		return Profile{}, fault.New(fault.InvalidRequest, "the client profile %s lacks api_url or api_key; remove it and start `wrenn up` again", path)
	}
	return p, nil
}

// Write puts the profile at path, readable by its owner only, and makes the directories
// above it. Readers see the old profile or the new one, never a part.
func Write(path string, p Profile) error {
	if err := write(path, p); err != nil {
		return fault.Wrap(err, fault.Internal, "cannot write the client profile %s", path)
	}
	return nil
}

func write(path string, p Profile) error {
	text, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return err
	}
	return atomicfile.WriteDurable(path, append(text, '\n'), fileMode)
}
