/*
 * An empty milter on libmilter. It continues each session, and requests no
 * message text. Its argument is a socket, such as unix:/run/x.sock.
 */
#include <sys/types.h>
#include <sys/socket.h>
#include <err.h>
#include <string.h>

#include <libmilter/mfapi.h>

typedef unsigned long flags;

static sfsistat
negotiate(SMFICTX *c, flags f0, flags f1, flags f2, flags f3,
    flags *p0, flags *p1, flags *p2, flags *p3)
{
	(void)c; (void)f0; (void)f2; (void)f3;
	*p0 = *p2 = *p3 = 0;
	*p1 = f1 & (SMFIP_NOBODY | SMFIP_NOHDRS | SMFIP_NOEOH | SMFIP_RCPT_REJ);
	return SMFIS_CONTINUE;
}

static sfsistat connect_(SMFICTX *c, char *a, _SOCK_ADDR *b) { (void)c; (void)a; (void)b; return SMFIS_CONTINUE; }
static sfsistat name_(SMFICTX *c, char *a) { (void)c; (void)a; return SMFIS_CONTINUE; }
static sfsistat path_(SMFICTX *c, char **a) { (void)c; (void)a; return SMFIS_CONTINUE; }
static sfsistat plain_(SMFICTX *c) { (void)c; return SMFIS_CONTINUE; }

int
main(int argc, char **argv)
{
	struct smfiDesc d;

	memset(&d, 0, sizeof d);
	d.xxfi_name = "empty";
	d.xxfi_version = SMFI_VERSION;
	d.xxfi_negotiate = negotiate;
	d.xxfi_connect = connect_;
	d.xxfi_helo = name_;
	d.xxfi_envfrom = path_;
	d.xxfi_envrcpt = path_;
	d.xxfi_data = plain_;
	d.xxfi_eom = plain_;
	if (argc != 2 || smfi_setconn(argv[1]) != MI_SUCCESS || smfi_register(d) != MI_SUCCESS)
		errx(1, "usage: milter socket");
	return smfi_main() == MI_SUCCESS ? 0 : 1;
}
