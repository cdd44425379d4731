/*
 * A library for LD_PRELOAD that makes the timers of a program SPEED times faster: a
 * timeout of 300 seconds in libevent occurs after 300/SPEED. The time of day does
 * not change. The library needs no symbols that an old libc lacks.
 */
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SPEED 100

int
clock_gettime(clockid_t clock, struct timespec *t)
{
	long ret = syscall(SYS_clock_gettime, clock, t);

	if (ret == 0 && (clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_COARSE)) {
		long long ns = (t->tv_sec * 1000000000LL + t->tv_nsec) * SPEED;

		t->tv_sec = ns / 1000000000LL;
		t->tv_nsec = ns % 1000000000LL;
	}
	return ret;
}

int
epoll_wait(int fd, struct epoll_event *events, int n, int timeout)
{
	if (timeout > 0)
		timeout = timeout / SPEED + 1;
	return syscall(SYS_epoll_pwait, fd, events, n, timeout, (void *)0, 8);
}
