package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// A lab in network namespaces has mounts of its own, too, and every database a small disk of its own: one that can be full.
const (
	diskMB      = 800
	diskWAL     = "128MB" // what the server keeps of it by itself
	switchesWAL = 24      // more segments than a server keeps ready
)

func (d *Deployment) databaseDir(site topo.SiteID) string {
	return filepath.Join(d.Dir, string(site)+"-db")
}

// mountDisk puts a disk where a site's database will be. It goes with the lab, however that ends: nobody else sees it.
func (d *Deployment) mountDisk(site topo.SiteID) error {
	dir := d.databaseDir(site)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("lab: disk of site %s: %w", site, err)
	}
	if err := unix.Mount("atoll-lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("size=%dm,mode=0700", diskMB)); err != nil {
		return fmt.Errorf("lab: disk of site %s (%w): a container must have the capability SYS_ADMIN", site, err)
	}
	return nil
}

// unmountDisks lets go of what mountDisk made in a lab's folder, so that it can be removed.
func unmountDisks(dir string) {
	found, _ := filepath.Glob(filepath.Join(dir, "*-db"))
	for _, disk := range found {
		_ = unix.Unmount(disk, unix.MNT_DETACH) // no mount there: nothing to let go of
	}
}

// FillDisk leaves no room on the disk of a site's database, and has it look for room for its WAL at once: a server that finds
// none ends itself, and does not come up again. Healing makes room, and starts the server where it has given up.
func (d *Deployment) FillDisk(site topo.SiteID) Fault {
	filler := filepath.Join(d.databaseDir(site), "filler")
	return Fault{
		Name: fmt.Sprintf("no room left on the disk of %s/db", site),
		Inject: func(ctx context.Context) error {
			if err := fill(filler); err != nil {
				return err
			}
			return d.useUpWAL(ctx, site)
		},
		Heal: func(ctx context.Context) error {
			err := os.Remove(filler)
			if errors.Is(err, os.ErrNotExist) { // it was never filled
				return nil
			}
			if err != nil {
				return err
			}
			if d.answers(ctx, site) {
				return nil
			}
			return d.databases[site].Restart(ctx)
		},
	}
}

// fill writes a file until there is no room for more.
func fill(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("lab: fill a disk: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for piece := 1 << 20; piece >= 4<<10; piece /= 4 {
		buf := make([]byte, piece)
		for err == nil {
			_, err = f.Write(buf)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return fmt.Errorf("lab: fill a disk: %w", err)
		}
		err = nil
	}
	return nil
}

// useUpWAL has a server begin one WAL segment after the other until it fails.
func (d *Deployment) useUpWAL(ctx context.Context, site topo.SiteID) error {
	ctx, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	db, err := pgx.Connect(ctx, d.databases[site].CallerDSN(pgserver.Superuser, database))
	if err != nil {
		return nil // it has failed already
	}
	defer db.Close(context.WithoutCancel(ctx))
	for range switchesWAL {
		if _, err := db.Exec(ctx, "SELECT pg_logical_emit_message(false, 'lab', 'a new segment'), pg_switch_wal()"); err != nil {
			return nil
		}
	}
	return nil
}

// answers tells whether a site's database answers soon.
func (d *Deployment) answers(ctx context.Context, site topo.SiteID) bool {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return every(ctx, 100*time.Millisecond, func() (bool, error) {
		return d.onDatabase(ctx, site, func(db *pgx.Conn) error { return db.Ping(ctx) }) == nil, nil
	}) == nil
}
