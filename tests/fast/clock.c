/*
 * Time that goes SPEED times faster for the timers of a program that loads this
 * first: what libevent waits for in 300 seconds comes after 300/SPEED. The time of
 * day stays as it is. No symbol is needed that an old libc has not.
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
