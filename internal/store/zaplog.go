package store

import (
	"errors"
	"fmt"
	"runtime"

	"go.uber.org/zap/zapcore"
)

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
