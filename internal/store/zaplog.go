package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"

	"go.uber.org/zap/zapcore"
)

// zapCore hands etcd's log to slog. etcd says much at info, which is debug to an operator of Atoll.
type zapCore struct {
	out    slog.Handler
	fields []zapcore.Field
}

func newZapCore(log *slog.Logger) zapcore.Core {
	return zapCore{out: log.Handler()}
}

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}

func (c zapCore) Enabled(l zapcore.Level) bool {
	return c.out.Enabled(context.Background(), slogLevel(l))
}

func (c zapCore) With(fields []zapcore.Field) zapcore.Core {
	c.fields = append(c.fields[:len(c.fields):len(c.fields)], fields...)
	return c
}

func (c zapCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c zapCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	r := slog.NewRecord(e.Time, slogLevel(e.Level), "etcd: "+e.Message, 0)
	for _, list := range [][]zapcore.Field{c.fields, fields} {
		for _, f := range list {
			f.AddTo(enc)
			if v, ok := enc.Fields[f.Key]; ok {
				r.AddAttrs(slog.Any(f.Key, v))
			}
		}
	}
	return c.out.Handle(context.Background(), r)
}

func (c zapCore) Sync() error { return nil }

// faults takes the place of exit and panic, by which etcd says that it cannot go on: the message goes to RunMember,
// and the goroutine that would have brought the process down ends alone.
type faults chan error

func (f faults) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(ce.Message)
	for _, field := range fields {
		if cause, ok := field.Interface.(error); ok {
			err = fmt.Errorf("%s: %w", ce.Message, cause)
		}
	}
	select {
	case f <- err:
	default: // an earlier one is reported
	}
	runtime.Goexit()
}
