package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/atollhq/atoll/internal/zaplog"
	"github.com/atollhq/atoll/topo"
)

// revisionBump lifts the revisions of a revived store above any that the former one can have reached: a compare-and-set
// that was decided on the former one's revisions fails, and observers, who ignore lower revisions, see what is new.
const revisionBump = 1_000_000_000

// Revival describes how a store is brought back on one member whose quorum is lost for good.
type Revival struct {
	Member MemberConfig // whose Dir becomes the revived store's; what is there now is kept beside it
	// From is a survivor's folder, or a backup file; empty: nothing is left, and the store begins empty.
	From string
}

// Revived is a store that nobody but this process reaches, in a folder of its own beside the member's. What is written to
// it counts once Install has put it into the member's place.
type Revived struct {
	Client *Client
	r      Revival
	dir    string
	stop   func() error
}

// Revive makes a one-member store out of what is left, with a new cluster id, and runs it in this process on loopback
// ports, where no agent finds it. The caller ends it with Install or Discard.
func Revive(ctx context.Context, r Revival) (*Revived, error) {
	v := &Revived{r: r, dir: r.Member.Dir + ".recovery"}
	if err := v.make(ctx); err != nil {
		return nil, fmt.Errorf("revive the store of %s: %w", r.Member.Site, errors.Join(err, v.Discard()))
	}
	return v, nil
}

func (v *Revived) make(ctx context.Context) error {
	if err := inUse(v.r.Member.Dir); err != nil {
		return err
	}
	if err := os.RemoveAll(v.dir); err != nil { // of an attempt that was interrupted
		return err
	}
	member := v.r.Member
	member.Dir = v.dir
	if err := claimDir(member); err != nil {
		return err
	}
	token := "atoll-" + member.Deployment + "-" + uuid.NewString()
	if v.r.From != "" {
		file, err := v.backupOf(ctx)
		if err == nil {
			err = restore(member, file, token)
		}
		if err != nil {
			return err
		}
	}
	client, stop, err := runPrivately(ctx, member, func(c *embed.Config) { c.InitialClusterToken = token })
	v.Client, v.stop = client, stop
	return err
}

// backupOf is the backup file to restore. A survivor's log may hold decisions that are not in its database file yet, so a
// copy of it runs for a moment as a store of its own, and is backed up.
func (v *Revived) backupOf(ctx context.Context) (string, error) {
	info, err := os.Stat(v.r.From)
	switch {
	case err != nil:
		return "", err
	case !info.IsDir():
		return v.r.From, CheckBackup(v.r.From)
	}
	if err := inUse(v.r.From); err != nil {
		return "", err
	}
	body, err := os.ReadFile(filepath.Join(v.r.From, memberFileName))
	if err != nil {
		return "", fmt.Errorf("%s is no store member's folder: %w", v.r.From, err)
	}
	born, err := parseMemberFile(body)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", v.r.From, err)
	case born.Deployment != v.r.Member.Deployment:
		return "", fmt.Errorf("%s holds data of deployment %q, this is %q", v.r.From, born.Deployment, v.r.Member.Deployment)
	}
	survivor := v.r.Member
	survivor.Dir = filepath.Join(v.dir, "survivor")
	if err := os.CopyFS(filepath.Join(survivor.Dir, "etcd"), os.DirFS(filepath.Join(v.r.From, "etcd"))); err != nil {
		return "", fmt.Errorf("copy %s: %w", v.r.From, err)
	}
	client, stop, err := runPrivately(ctx, survivor, func(c *embed.Config) { c.ForceNewCluster = true })
	if err != nil {
		return "", err
	}
	file := filepath.Join(v.dir, "survivor.backup")
	err = backupTo(ctx, client, file)
	if err = errors.Join(err, stop()); err != nil {
		return "", err
	}
	return file, errors.Join(CheckBackup(file), os.RemoveAll(survivor.Dir))
}

func backupTo(ctx context.Context, client *Client, file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = client.Backup(ctx, f)
	return errors.Join(err, f.Close())
}

// restore makes the data of a store that has one member and a cluster id of its own.
func restore(member MemberConfig, file, token string) error {
	log := member.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	u, err := httpsURL(member.AdvertisePeer)
	if err != nil {
		return err
	}
	err = snapshot.NewV3(zap.New(zaplog.New(log, "etcd: "))).Restore(snapshot.RestoreConfig{
		SnapshotPath: file, Name: string(member.Site), OutputDataDir: filepath.Join(member.Dir, "etcd"),
		PeerURLs: []string{u.String()}, InitialCluster: string(member.Site) + "=" + u.String(), InitialClusterToken: token,
		RevisionBump: revisionBump, MarkCompacted: true,
	})
	if err != nil {
		return fmt.Errorf("restore %s: %w", file, err)
	}
	return nil
}

// runPrivately runs a member on loopback ports that nobody knows, for a client of this process.
func runPrivately(ctx context.Context, cfg MemberConfig, change func(*embed.Config)) (*Client, func() error, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	broken := make(faults, 1)
	cfg.ListenClient, cfg.ListenPeer = "127.0.0.1:0", "127.0.0.1:0"
	cfg.InitialCluster = map[topo.SiteID]string{cfg.Site: cfg.AdvertisePeer}
	conf, err := cfg.embedConfig(log, broken)
	if err != nil {
		return nil, nil, err
	}
	change(conf)
	member, err := startEtcd(cfg, conf, broken)
	if err != nil {
		return nil, nil, err
	}
	secure, err := cfg.siteTLS()
	if err != nil {
		return nil, nil, errors.Join(err, closeEtcd(member, cfg.Site))
	}
	select {
	case <-member.Server.ReadyNotify():
	case err = <-member.Err():
	case err = <-broken:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return nil, nil, errors.Join(err, closeEtcd(member, cfg.Site))
	}
	client, err := Open(ctx, Config{Deployment: cfg.Deployment, Try: 5 * time.Second, Logger: cfg.Logger,
		TLS:       func(topo.SiteID) *tls.Config { return secure },
		Endpoints: []Endpoint{{cfg.Site, member.Clients[0].Addr().String()}}})
	if err != nil {
		return nil, nil, errors.Join(err, closeEtcd(member, cfg.Site))
	}
	return client, func() error { client.Close(); return closeEtcd(member, cfg.Site) }, nil
}

// Install ends the private store and puts it into the member's place. The former folder is kept beside it; the name that
// it has now is returned, empty if there was none.
func (v *Revived) Install(now time.Time) (former string, err error) {
	if err := v.end(); err != nil {
		return "", err
	}
	for _, leftover := range []string{"survivor", "survivor.backup"} {
		if err := os.RemoveAll(filepath.Join(v.dir, leftover)); err != nil {
			return "", err
		}
	}
	dir := v.r.Member.Dir
	former = dir + ".former-" + now.UTC().Format("20060102-150405")
	if err := os.Rename(dir, former); errors.Is(err, fs.ErrNotExist) {
		former = ""
	} else if err != nil {
		return "", err
	}
	return former, os.Rename(v.dir, dir)
}

// Discard ends the private store and leaves nothing of it.
func (v *Revived) Discard() error { return errors.Join(v.end(), os.RemoveAll(v.dir)) }

func (v *Revived) end() error {
	if v.stop == nil {
		return nil
	}
	stop := v.stop
	v.stop = nil
	return stop()
}

// inUse refuses a folder that a running member works in.
func inUse(dir string) error {
	f, err := os.Open(filepath.Join(dir, "etcd", "member", "snap", "db"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("a member is running in %s; stop it first", dir)
	}
	return nil
}
