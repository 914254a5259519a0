/* The start of a WASI command. Newer linkers wrap every export of a module that is linked with Debian's own copy in
 * its constructors, which traps in components that have a preopened folder. */
void __wasm_call_ctors(void);
void __wasm_call_dtors(void);
int __main_void(void);
_Noreturn void __wasi_proc_exit(int);

__attribute__((export_name("_start"))) void _start(void) {
    __wasm_call_ctors();
    int code = __main_void();
    __wasm_call_dtors();
    if (code) __wasi_proc_exit(code);
}
