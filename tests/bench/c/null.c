/*
 * A minimal filter in C: it reads lines and answers proceed. Its arguments are
 * registrations such as report|smtp-in|link-connect.
 */
#include <string.h>
#include <unistd.h>

static char	in[1 << 17], out[1 << 18];
static size_t	have, made;

static void
put(const char *s, size_t n)
{
	if (made + n > sizeof(out))
		_exit(1);
	memcpy(out + made, s, n);
	made += n;
}

static void
say(void)
{
	size_t	 done = 0;

	while (done < made) {
		ssize_t n = write(1, out + done, made - done);
		if (n <= 0)
			_exit(1);
		done += n;
	}
	made = 0;
}

int
main(int argc, char **argv)
{
	static const char	 ready[] = "config|ready";
	int			 i, registered = 0;

	for (;;) {
		ssize_t n = read(0, in + have, sizeof(in) - have);
		if (n <= 0)
			return n < 0;
		have += n;
		char *p = in, *end = in + have, *nl;
		for (; (nl = memchr(p, '\n', end - p)) != NULL; p = nl + 1) {
			if (*p == 'f') {
				char *from = p, *to;
				for (i = 0; i < 5; i++)
					from = (char *)memchr(from, '|', nl - from) + 1;
				to = (char *)memchr(from, '|', nl - from) + 1;
				if ((to = memchr(to, '|', nl - to)) == NULL)
					to = nl;
				put("filter-result|", 14);
				put(from, to - from);
				put("|proceed\n", 9);
			} else if (!registered && nl - p == sizeof(ready) - 1 &&
			    memcmp(p, ready, sizeof(ready) - 1) == 0) {
				registered = 1;
				for (i = 1; i < argc; i++) {
					put("register|", 9);
					put(argv[i], strlen(argv[i]));
					put("\n", 1);
				}
				put("register|ready\n", 15);
			}
		}
		have = end - p;
		memmove(in, p, have);
		say();
	}
}
