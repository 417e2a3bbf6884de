main_compute_:
.Lfunc_begin3:
	subq	$40, %rsp
	movq	__TVMBackendParallelLaunch@GOTPCREL(%rip), %rax
	movl	%r8d, (%rsp)
	movq	%rdi, 8(%rsp)
	leaq	.L__tvm_parallel_lambda(%rip), %rdi
	movq	%rsi, 16(%rsp)
	movq	%rcx, 24(%rsp)
	movq	%rdx, 32(%rsp)
	movq	%rsp, %rsi
	xorl	%edx, %edx
	callq	*(%rax)
	addq	$40, %rsp
	retq
.Lfunc_end3:

.L__tvm_parallel_lambda:
.Lfunc_begin4:
	movl	8(%rsi), %esi
	movq	%rdx, %rcx
	leal	3(%rsi), %eax
	cltd
	idivl	%esi
	leal	1(%rdi), %esi
	movl	$4, %edx
	imull	%eax, %esi
	cmpl	$4, %esi
	cmovll	%esi, %edx
	imull	%edi, %eax
	cmpl	%edx, %eax
	jge	.LBB4_63
	pushq	%rbp
	pushq	%r15
	pushq	%r14
	pushq	%r13
	pushq	%r12
	pushq	%rbx
	subq	$168, %rsp
	movl	(%rcx), %ebx
	movq	8(%rcx), %r12
	movq	16(%rcx), %r13
	movq	24(%rcx), %rbp
	movq	32(%rcx), %rcx
	movq	__TVMBackendAllocWorkspace@GOTPCREL(%rip), %r15
	cltq
	movq	%rax, 16(%rsp)
	movslq	%edx, %rax
	movq	%rax, 120(%rsp)
	movq	%rcx, 128(%rsp)
	leaq	19520(%r13), %rdx
	leaq	20544(%r13), %rcx
	leaq	18496(%r13), %rax
	movq	%rdx, 152(%rsp)
	movq	%rcx, 144(%rsp)
	leaq	27712(%r13), %rdx
	leaq	28736(%r13), %rcx
	movq	%rax, 160(%rsp)
	addq	$29760, %r13
	movq	%rdx, 136(%rsp)
	movq	%rcx, 112(%rsp)
.LBB4_2:
	movl	$13824, %edx
	movl	$1, %edi
	movl	$2, %ecx
	movl	$32, %r8d
	movl	%ebx, %esi
	callq	*(%r15)
	movq	%rax, %r14
	movl	$-1, %eax
	testq	%r14, %r14
	je	.LBB4_66
	movl	$1024, %edx
	movl	$1, %edi
	movl	$2, %ecx
	movl	$32, %r8d
	movl	%ebx, %esi
	movq	%rbp, 32(%rsp)
	movq	%r12, 8(%rsp)
	movq	%r14, (%rsp)
	movl	%ebx, 28(%rsp)
	callq	*(%r15)
	movq	%rax, 104(%rsp)
	testq	%rax, %rax
	je	.LBB4_65
	movq	16(%rsp), %rax
	movq	(%rsp), %rdi
	leaq	(,%rax,4), %rbx
	movq	%rax, %r14
	shlq	$10, %r14
	leal	-1(%rbx), %eax
	cmpl	$16, %eax
	jae	.LBB4_6
	movq	8(%rsp), %rax
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, (%rdi)
	vmovaps	-1024(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 64(%rdi)
	vmovaps	-960(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 128(%rdi)
	vmovaps	-896(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 192(%rdi)
	vmovaps	-832(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 256(%rdi)
	vmovaps	-768(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 320(%rdi)
	vmovaps	-704(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 384(%rdi)
	vmovaps	-640(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 448(%rdi)
	vmovaps	-576(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 512(%rdi)
	vmovaps	-512(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 576(%rdi)
	vmovaps	-448(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 640(%rdi)
	vmovaps	-384(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 704(%rdi)
	vmovaps	-320(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 768(%rdi)
	vmovaps	-256(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 832(%rdi)
	vmovaps	-192(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 896(%rdi)
	vmovaps	-128(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 960(%rdi)
	vmovaps	-64(%rax,%r14,4), %zmm0
	vmovups	%zmm0, 1024(%rdi)
	vmovups	%zmm1, 1088(%rdi)
	jmp	.LBB4_7
.LBB4_6:
	movl	$1152, %edx
	xorl	%esi, %esi
	callq	memset@PLT
.LBB4_7:
	testl	$1073741820, 16(%rsp)
	movq	(%rsp), %rax
	je	.LBB4_9
	leaq	1152(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
	jmp	.LBB4_10
.LBB4_9:
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 1152(%rax)
	vmovaps	(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1216(%rax)
	vmovaps	64(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1280(%rax)
	vmovaps	128(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1344(%rax)
	vmovaps	192(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1408(%rax)
	vmovaps	256(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1472(%rax)
	vmovaps	320(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1536(%rax)
	vmovaps	384(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1600(%rax)
	vmovaps	448(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1664(%rax)
	vmovaps	512(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1728(%rax)
	vmovaps	576(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1792(%rax)
	vmovaps	640(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1856(%rax)
	vmovaps	704(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1920(%rax)
	vmovaps	768(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 1984(%rax)
	vmovaps	832(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2048(%rax)
	vmovaps	896(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2112(%rax)
	vmovaps	960(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2176(%rax)
	vmovups	%zmm1, 2240(%rax)
.LBB4_10:
	testl	$1073741820, 16(%rsp)
	movq	(%rsp), %rax
	je	.LBB4_12
	leaq	2304(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
	jmp	.LBB4_13
.LBB4_12:
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 2304(%rax)
	vmovaps	1024(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2368(%rax)
	vmovaps	1088(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2432(%rax)
	vmovaps	1152(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2496(%rax)
	vmovaps	1216(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2560(%rax)
	vmovaps	1280(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2624(%rax)
	vmovaps	1344(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2688(%rax)
	vmovaps	1408(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2752(%rax)
	vmovaps	1472(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2816(%rax)
	vmovaps	1536(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2880(%rax)
	vmovaps	1600(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 2944(%rax)
	vmovaps	1664(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3008(%rax)
	vmovaps	1728(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3072(%rax)
	vmovaps	1792(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3136(%rax)
	vmovaps	1856(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3200(%rax)
	vmovaps	1920(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3264(%rax)
	vmovaps	1984(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3328(%rax)
	vmovups	%zmm1, 3392(%rax)
.LBB4_13:
	testl	$1073741820, 16(%rsp)
	movq	(%rsp), %rax
	je	.LBB4_15
	leaq	3456(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
	jmp	.LBB4_16
.LBB4_15:
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 3456(%rax)
	vmovaps	2048(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3520(%rax)
	vmovaps	2112(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3584(%rax)
	vmovaps	2176(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3648(%rax)
	vmovaps	2240(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3712(%rax)
	vmovaps	2304(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3776(%rax)
	vmovaps	2368(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3840(%rax)
	vmovaps	2432(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3904(%rax)
	vmovaps	2496(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 3968(%rax)
	vmovaps	2560(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4032(%rax)
	vmovaps	2624(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4096(%rax)
	vmovaps	2688(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4160(%rax)
	vmovaps	2752(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4224(%rax)
	vmovaps	2816(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4288(%rax)
	vmovaps	2880(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4352(%rax)
	vmovaps	2944(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4416(%rax)
	vmovaps	3008(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4480(%rax)
	vmovups	%zmm1, 4544(%rax)
.LBB4_16:
	testl	$1073741820, 16(%rsp)
	movq	(%rsp), %rax
	je	.LBB4_18
	leaq	4608(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
	jmp	.LBB4_19
.LBB4_18:
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 4608(%rax)
	vmovaps	3072(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4672(%rax)
	vmovaps	3136(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4736(%rax)
	vmovaps	3200(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4800(%rax)
	vmovaps	3264(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4864(%rax)
	vmovaps	3328(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4928(%rax)
	vmovaps	3392(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 4992(%rax)
	vmovaps	3456(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5056(%rax)
	vmovaps	3520(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5120(%rax)
	vmovaps	3584(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5184(%rax)
	vmovaps	3648(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5248(%rax)
	vmovaps	3712(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5312(%rax)
	vmovaps	3776(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5376(%rax)
	vmovaps	3840(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5440(%rax)
	vmovaps	3904(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5504(%rax)
	vmovaps	3968(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5568(%rax)
	vmovaps	4032(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5632(%rax)
	vmovups	%zmm1, 5696(%rax)
.LBB4_19:
	leal	4(%rbx), %eax
	cmpl	$16, %eax
	movq	(%rsp), %rax
	jae	.LBB4_21
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 5760(%rax)
	vmovaps	4096(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5824(%rax)
	vmovaps	4160(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5888(%rax)
	vmovaps	4224(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 5952(%rax)
	vmovaps	4288(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6016(%rax)
	vmovaps	4352(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6080(%rax)
	vmovaps	4416(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6144(%rax)
	vmovaps	4480(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6208(%rax)
	vmovaps	4544(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6272(%rax)
	vmovaps	4608(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6336(%rax)
	vmovaps	4672(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6400(%rax)
	vmovaps	4736(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6464(%rax)
	vmovaps	4800(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6528(%rax)
	vmovaps	4864(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6592(%rax)
	vmovaps	4928(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6656(%rax)
	vmovaps	4992(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6720(%rax)
	vmovaps	5056(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6784(%rax)
	vmovups	%zmm1, 6848(%rax)
	jmp	.LBB4_22
.LBB4_21:
	leaq	5760(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
.LBB4_22:
	leal	-1(%rbx), %eax
	cmpl	$16, %eax
	movq	(%rsp), %rax
	jae	.LBB4_24
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 6912(%rax)
	vmovaps	15360(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 6976(%rax)
	vmovaps	15424(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7040(%rax)
	vmovaps	15488(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7104(%rax)
	vmovaps	15552(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7168(%rax)
	vmovaps	15616(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7232(%rax)
	vmovaps	15680(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7296(%rax)
	vmovaps	15744(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7360(%rax)
	vmovaps	15808(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7424(%rax)
	vmovaps	15872(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7488(%rax)
	vmovaps	15936(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7552(%rax)
	vmovaps	16000(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7616(%rax)
	vmovaps	16064(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7680(%rax)
	vmovaps	16128(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7744(%rax)
	vmovaps	16192(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7808(%rax)
	vmovaps	16256(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7872(%rax)
	vmovaps	16320(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 7936(%rax)
	vmovups	%zmm1, 8000(%rax)
	jmp	.LBB4_25
.LBB4_24:
	leaq	6912(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
.LBB4_25:
	testl	$1073741820, 16(%rsp)
	movq	(%rsp), %rax
	je	.LBB4_27
	leaq	8064(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
	jmp	.LBB4_28
.LBB4_27:
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 8064(%rax)
	vmovaps	16384(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8128(%rax)
	vmovaps	16448(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8192(%rax)
	vmovaps	16512(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8256(%rax)
	vmovaps	16576(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8320(%rax)
	vmovaps	16640(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8384(%rax)
	vmovaps	16704(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8448(%rax)
	vmovaps	16768(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8512(%rax)
	vmovaps	16832(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8576(%rax)
	vmovaps	16896(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8640(%rax)
	vmovaps	16960(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8704(%rax)
	vmovaps	17024(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8768(%rax)
	vmovaps	17088(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8832(%rax)
	vmovaps	17152(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8896(%rax)
	vmovaps	17216(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 8960(%rax)
	vmovaps	17280(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9024(%rax)
	vmovaps	17344(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9088(%rax)
	vmovups	%zmm1, 9152(%rax)
.LBB4_28:
	testl	$1073741820, 16(%rsp)
	movq	(%rsp), %rax
	je	.LBB4_30
	leaq	9216(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
	jmp	.LBB4_31
.LBB4_30:
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 9216(%rax)
	vmovaps	17408(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9280(%rax)
	vmovaps	17472(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9344(%rax)
	vmovaps	17536(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9408(%rax)
	vmovaps	17600(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9472(%rax)
	vmovaps	17664(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9536(%rax)
	vmovaps	17728(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9600(%rax)
	vmovaps	17792(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9664(%rax)
	vmovaps	17856(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9728(%rax)
	vmovaps	17920(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9792(%rax)
	vmovaps	17984(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9856(%rax)
	vmovaps	18048(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9920(%rax)
	vmovaps	18112(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 9984(%rax)
	vmovaps	18176(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10048(%rax)
	vmovaps	18240(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10112(%rax)
	vmovaps	18304(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10176(%rax)
	vmovaps	18368(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10240(%rax)
	vmovups	%zmm1, 10304(%rax)
.LBB4_31:
	testl	$1073741820, 16(%rsp)
	movq	(%rsp), %rax
	je	.LBB4_33
	leaq	10368(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
	jmp	.LBB4_34
.LBB4_33:
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 10368(%rax)
	vmovaps	18432(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10432(%rax)
	vmovaps	18496(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10496(%rax)
	vmovaps	18560(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10560(%rax)
	vmovaps	18624(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10624(%rax)
	vmovaps	18688(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10688(%rax)
	vmovaps	18752(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10752(%rax)
	vmovaps	18816(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10816(%rax)
	vmovaps	18880(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10880(%rax)
	vmovaps	18944(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 10944(%rax)
	vmovaps	19008(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11008(%rax)
	vmovaps	19072(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11072(%rax)
	vmovaps	19136(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11136(%rax)
	vmovaps	19200(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11200(%rax)
	vmovaps	19264(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11264(%rax)
	vmovaps	19328(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11328(%rax)
	vmovaps	19392(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11392(%rax)
	vmovups	%zmm1, 11456(%rax)
.LBB4_34:
	testl	$1073741820, 16(%rsp)
	movq	(%rsp), %rax
	je	.LBB4_36
	leaq	11520(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
	jmp	.LBB4_37
.LBB4_36:
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 11520(%rax)
	vmovaps	19456(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11584(%rax)
	vmovaps	19520(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11648(%rax)
	vmovaps	19584(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11712(%rax)
	vmovaps	19648(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11776(%rax)
	vmovaps	19712(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11840(%rax)
	vmovaps	19776(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11904(%rax)
	vmovaps	19840(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 11968(%rax)
	vmovaps	19904(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12032(%rax)
	vmovaps	19968(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12096(%rax)
	vmovaps	20032(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12160(%rax)
	vmovaps	20096(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12224(%rax)
	vmovaps	20160(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12288(%rax)
	vmovaps	20224(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12352(%rax)
	vmovaps	20288(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12416(%rax)
	vmovaps	20352(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12480(%rax)
	vmovaps	20416(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12544(%rax)
	vmovups	%zmm1, 12608(%rax)
.LBB4_37:
	movq	(%rsp), %rax
	addl	$4, %ebx
	cmpl	$16, %ebx
	jae	.LBB4_39
	movq	8(%rsp), %rcx
	vxorps	%xmm1, %xmm1, %xmm1
	vmovups	%zmm1, 12672(%rax)
	vmovaps	20480(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12736(%rax)
	vmovaps	20544(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12800(%rax)
	vmovaps	20608(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12864(%rax)
	vmovaps	20672(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12928(%rax)
	vmovaps	20736(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 12992(%rax)
	vmovaps	20800(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13056(%rax)
	vmovaps	20864(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13120(%rax)
	vmovaps	20928(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13184(%rax)
	vmovaps	20992(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13248(%rax)
	vmovaps	21056(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13312(%rax)
	vmovaps	21120(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13376(%rax)
	vmovaps	21184(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13440(%rax)
	vmovaps	21248(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13504(%rax)
	vmovaps	21312(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13568(%rax)
	vmovaps	21376(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13632(%rax)
	vmovaps	21440(%rcx,%r14,4), %zmm0
	vmovups	%zmm0, 13696(%rax)
	vmovups	%zmm1, 13760(%rax)
	jmp	.LBB4_40
.LBB4_39:
	leaq	12672(%rax), %rdi
	movl	$1152, %edx
	xorl	%esi, %esi
	vzeroupper
	callq	memset@PLT
.LBB4_40:
	movq	128(%rsp), %rax
	movq	(%rsp), %rdi
	movq	32(%rsp), %rcx
	movq	112(%rsp), %r15
	xorl	%r11d, %r11d
	vmovaps	(%rax), %zmm0
	vmovaps	64(%rax), %zmm1
	leaq	(%rcx,%r14,4), %rax
	leaq	516(%rdi), %rsi
	leaq	580(%rdi), %rdx
	leaq	452(%rdi), %rcx
	movq	%rsi, 72(%rsp)
	movq	%rdx, 64(%rsp)
	leaq	7364(%rdi), %rsi
	leaq	7428(%rdi), %rdx
	addq	$7492, %rdi
	movq	%rcx, 80(%rsp)
	movq	%rax, 96(%rsp)
	movq	%rsi, 56(%rsp)
	movq	%rdx, 48(%rsp)
	movq	%rdi, 40(%rsp)
.LBB4_41:
	movq	%r11, 88(%rsp)
	shlq	$10, %r11
	addq	96(%rsp), %r11
	movb	$1, %al
	xorl	%r10d, %r10d
	vxorps	%xmm28, %xmm28, %xmm28
.LBB4_42:
	movq	80(%rsp), %rcx
	movq	72(%rsp), %rdx
	movq	64(%rsp), %rsi
	movq	144(%rsp), %rbp
	movq	152(%rsp), %rdi
	movq	160(%rsp), %rbx
	leaq	(,%r10,4), %r14
	vxorps	%xmm2, %xmm2, %xmm2
	xorl	%r9d, %r9d
	vxorps	%xmm3, %xmm3, %xmm3
	vxorps	%xmm4, %xmm4, %xmm4
	vxorps	%xmm5, %xmm5, %xmm5
	vxorps	%xmm6, %xmm6, %xmm6
	vxorps	%xmm7, %xmm7, %xmm7
	vxorps	%xmm8, %xmm8, %xmm8
	vxorps	%xmm9, %xmm9, %xmm9
	vxorps	%xmm10, %xmm10, %xmm10
	vxorps	%xmm11, %xmm11, %xmm11
	vxorps	%xmm12, %xmm12, %xmm12
	vxorps	%xmm13, %xmm13, %xmm13
	vxorps	%xmm14, %xmm14, %xmm14
	vxorps	%xmm15, %xmm15, %xmm15
	vxorps	%xmm16, %xmm16, %xmm16
	vxorps	%xmm17, %xmm17, %xmm17
	leaq	(%rcx,%r10,4), %rcx
	leaq	(%rdx,%r10,4), %rdx
	leaq	(%rsi,%r10,4), %rsi
.LBB4_43:
	movq	$-64, %r12
	movq	%rbx, %r8
.LBB4_44:
	vbroadcastss	-388(%rcx,%r12), %zmm19
	vbroadcastss	-324(%rcx,%r12), %zmm21
	vbroadcastss	-260(%rcx,%r12), %zmm22
	vbroadcastss	-196(%rcx,%r12), %zmm23
	vbroadcastss	-132(%rcx,%r12), %zmm24
	vbroadcastss	-68(%rcx,%r12), %zmm25
	vbroadcastss	-4(%rcx,%r12), %zmm26
	vbroadcastss	60(%rcx,%r12), %zmm27
	vmovaps	-18496(%r8), %zmm20
	vmovaps	-64(%r8), %zmm30
	vbroadcastss	-384(%rcx,%r12), %zmm29
	vmovaps	-18432(%r8), %zmm18
	vfmadd231ps	%zmm20, %zmm19, %zmm2
	vfmadd231ps	%zmm20, %zmm21, %zmm3
	vfmadd231ps	%zmm21, %zmm30, %zmm11
	vfmadd231ps	%zmm20, %zmm22, %zmm4
	vfmadd231ps	%zmm22, %zmm30, %zmm12
	vbroadcastss	-256(%rcx,%r12), %zmm21
	vfmadd231ps	%zmm20, %zmm23, %zmm5
	vfmadd231ps	%zmm23, %zmm30, %zmm13
	vbroadcastss	-192(%rcx,%r12), %zmm22
	vfmadd231ps	%zmm20, %zmm24, %zmm6
	vfmadd231ps	%zmm24, %zmm30, %zmm14
	vbroadcastss	-128(%rcx,%r12), %zmm23
	vfmadd231ps	%zmm20, %zmm25, %zmm7
	vfmadd231ps	%zmm25, %zmm30, %zmm15
	vbroadcastss	-64(%rcx,%r12), %zmm24
	vfmadd231ps	%zmm20, %zmm26, %zmm8
	vfmadd231ps	%zmm20, %zmm27, %zmm9
	vfmadd231ps	%zmm26, %zmm30, %zmm16
	vbroadcastss	-320(%rcx,%r12), %zmm20
	vbroadcastss	(%rcx,%r12), %zmm25
	vbroadcastss	64(%rcx,%r12), %zmm26
	vfmadd231ps	%zmm30, %zmm27, %zmm17
	vmovaps	(%r8), %zmm27
	vfmadd231ps	%zmm19, %zmm30, %zmm10
	subq	$-128, %r8
	addq	$8, %r12
	vfmadd231ps	%zmm18, %zmm29, %zmm2
	vfmadd231ps	%zmm29, %zmm27, %zmm10
	vfmadd231ps	%zmm18, %zmm20, %zmm3
	vfmadd231ps	%zmm18, %zmm21, %zmm4
	vfmadd231ps	%zmm18, %zmm22, %zmm5
	vfmadd231ps	%zmm18, %zmm23, %zmm6
	vfmadd231ps	%zmm18, %zmm24, %zmm7
	vfmadd231ps	%zmm18, %zmm25, %zmm8
	vfmadd231ps	%zmm18, %zmm26, %zmm9
	vfmadd231ps	%zmm20, %zmm27, %zmm11
	vfmadd231ps	%zmm21, %zmm27, %zmm12
	vfmadd231ps	%zmm22, %zmm27, %zmm13
	vfmadd231ps	%zmm23, %zmm27, %zmm14
	vfmadd231ps	%zmm24, %zmm27, %zmm15
	vfmadd231ps	%zmm25, %zmm27, %zmm16
	vfmadd231ps	%zmm27, %zmm26, %zmm17
	jne	.LBB4_44
	movq	$-16, %r8
	movq	%rdi, %r12
.LBB4_46:
	vbroadcastss	-388(%rdx,%r8,4), %zmm19
	vbroadcastss	-324(%rdx,%r8,4), %zmm21
	vbroadcastss	-260(%rdx,%r8,4), %zmm22
	vbroadcastss	-196(%rdx,%r8,4), %zmm23
	vbroadcastss	-132(%rdx,%r8,4), %zmm24
	vbroadcastss	-68(%rdx,%r8,4), %zmm25
	vbroadcastss	-4(%rdx,%r8,4), %zmm26
	vbroadcastss	60(%rdx,%r8,4), %zmm27
	vmovaps	-18496(%r12), %zmm20
	vmovaps	-64(%r12), %zmm30
	vbroadcastss	-384(%rdx,%r8,4), %zmm29
	vmovaps	-18432(%r12), %zmm18
	vfmadd231ps	%zmm20, %zmm19, %zmm2
	vfmadd231ps	%zmm20, %zmm21, %zmm3
	vfmadd231ps	%zmm21, %zmm30, %zmm11
	vfmadd231ps	%zmm20, %zmm22, %zmm4
	vfmadd231ps	%zmm22, %zmm30, %zmm12
	vbroadcastss	-256(%rdx,%r8,4), %zmm21
	vfmadd231ps	%zmm20, %zmm23, %zmm5
	vfmadd231ps	%zmm23, %zmm30, %zmm13
	vbroadcastss	-192(%rdx,%r8,4), %zmm22
	vfmadd231ps	%zmm20, %zmm24, %zmm6
	vfmadd231ps	%zmm24, %zmm30, %zmm14
	vbroadcastss	-128(%rdx,%r8,4), %zmm23
	vfmadd231ps	%zmm20, %zmm25, %zmm7
	vfmadd231ps	%zmm25, %zmm30, %zmm15
	vbroadcastss	-64(%rdx,%r8,4), %zmm24
	vfmadd231ps	%zmm20, %zmm26, %zmm8
	vfmadd231ps	%zmm20, %zmm27, %zmm9
	vfmadd231ps	%zmm26, %zmm30, %zmm16
	vbroadcastss	-320(%rdx,%r8,4), %zmm20
	vbroadcastss	(%rdx,%r8,4), %zmm25
	vbroadcastss	64(%rdx,%r8,4), %zmm26
	vfmadd231ps	%zmm30, %zmm27, %zmm17
	vmovaps	(%r12), %zmm27
	vfmadd231ps	%zmm19, %zmm30, %zmm10
	subq	$-128, %r12
	addq	$2, %r8
	vfmadd231ps	%zmm18, %zmm29, %zmm2
	vfmadd231ps	%zmm29, %zmm27, %zmm10
	vfmadd231ps	%zmm18, %zmm20, %zmm3
	vfmadd231ps	%zmm18, %zmm21, %zmm4
	vfmadd231ps	%zmm18, %zmm22, %zmm5
	vfmadd231ps	%zmm18, %zmm23, %zmm6
	vfmadd231ps	%zmm18, %zmm24, %zmm7
	vfmadd231ps	%zmm18, %zmm25, %zmm8
	vfmadd231ps	%zmm18, %zmm26, %zmm9
	vfmadd231ps	%zmm20, %zmm27, %zmm11
	vfmadd231ps	%zmm21, %zmm27, %zmm12
	vfmadd231ps	%zmm22, %zmm27, %zmm13
	vfmadd231ps	%zmm23, %zmm27, %zmm14
	vfmadd231ps	%zmm24, %zmm27, %zmm15
	vfmadd231ps	%zmm25, %zmm27, %zmm16
	vfmadd231ps	%zmm27, %zmm26, %zmm17
	jne	.LBB4_46
	movq	$-64, %r8
	movq	%rbp, %r12
.LBB4_48:
	vbroadcastss	-388(%rsi,%r8), %zmm19
	vbroadcastss	-324(%rsi,%r8), %zmm21
	vbroadcastss	-260(%rsi,%r8), %zmm22
	vbroadcastss	-196(%rsi,%r8), %zmm23
	vbroadcastss	-132(%rsi,%r8), %zmm24
	vbroadcastss	-68(%rsi,%r8), %zmm25
	vbroadcastss	-4(%rsi,%r8), %zmm26
	vbroadcastss	60(%rsi,%r8), %zmm27
	vmovaps	-18496(%r12), %zmm20
	vmovaps	-64(%r12), %zmm30
	vbroadcastss	-384(%rsi,%r8), %zmm29
	vmovaps	-18432(%r12), %zmm18
	vfmadd231ps	%zmm20, %zmm19, %zmm2
	vfmadd231ps	%zmm20, %zmm21, %zmm3
	vfmadd231ps	%zmm21, %zmm30, %zmm11
	vfmadd231ps	%zmm20, %zmm22, %zmm4
	vfmadd231ps	%zmm22, %zmm30, %zmm12
	vbroadcastss	-256(%rsi,%r8), %zmm21
	vfmadd231ps	%zmm20, %zmm23, %zmm5
	vfmadd231ps	%zmm23, %zmm30, %zmm13
	vbroadcastss	-192(%rsi,%r8), %zmm22
	vfmadd231ps	%zmm20, %zmm24, %zmm6
	vfmadd231ps	%zmm24, %zmm30, %zmm14
	vbroadcastss	-128(%rsi,%r8), %zmm23
	vfmadd231ps	%zmm20, %zmm25, %zmm7
	vfmadd231ps	%zmm25, %zmm30, %zmm15
	vbroadcastss	-64(%rsi,%r8), %zmm24
	vfmadd231ps	%zmm20, %zmm26, %zmm8
	vfmadd231ps	%zmm20, %zmm27, %zmm9
	vfmadd231ps	%zmm26, %zmm30, %zmm16
	vbroadcastss	-320(%rsi,%r8), %zmm20
	vbroadcastss	(%rsi,%r8), %zmm25
	vbroadcastss	64(%rsi,%r8), %zmm26
	vfmadd231ps	%zmm30, %zmm27, %zmm17
	vmovaps	(%r12), %zmm27
	vfmadd231ps	%zmm19, %zmm30, %zmm10
	subq	$-128, %r12
	addq	$8, %r8
	vfmadd231ps	%zmm18, %zmm29, %zmm2
	vfmadd231ps	%zmm29, %zmm27, %zmm10
	vfmadd231ps	%zmm18, %zmm20, %zmm3
	vfmadd231ps	%zmm18, %zmm21, %zmm4
	vfmadd231ps	%zmm18, %zmm22, %zmm5
	vfmadd231ps	%zmm18, %zmm23, %zmm6
	vfmadd231ps	%zmm18, %zmm24, %zmm7
	vfmadd231ps	%zmm18, %zmm25, %zmm8
	vfmadd231ps	%zmm18, %zmm26, %zmm9
	vfmadd231ps	%zmm20, %zmm27, %zmm11
	vfmadd231ps	%zmm21, %zmm27, %zmm12
	vfmadd231ps	%zmm22, %zmm27, %zmm13
	vfmadd231ps	%zmm23, %zmm27, %zmm14
	vfmadd231ps	%zmm24, %zmm27, %zmm15
	vfmadd231ps	%zmm25, %zmm27, %zmm16
	vfmadd231ps	%zmm27, %zmm26, %zmm17
	jne	.LBB4_48
	incq	%r9
	addq	$3072, %rbx
	addq	$1152, %rcx
	addq	$3072, %rdi
	addq	$1152, %rdx
	addq	$3072, %rbp
	addq	$1152, %rsi
	cmpq	$3, %r9
	jne	.LBB4_43
	movq	56(%rsp), %rcx
	movq	48(%rsp), %rdx
	movq	136(%rsp), %r8
	movq	%r13, %rsi
	movq	%r15, %rdi
	xorl	%r9d, %r9d
	addq	%r14, %rcx
	addq	%r14, %rdx
	addq	40(%rsp), %r14
.LBB4_51:
	movq	$-64, %r12
	movq	%r8, %rbx
.LBB4_52:
	vbroadcastss	-388(%rcx,%r12), %zmm19
	vbroadcastss	-324(%rcx,%r12), %zmm21
	vbroadcastss	-260(%rcx,%r12), %zmm22
	vbroadcastss	-196(%rcx,%r12), %zmm23
	vbroadcastss	-132(%rcx,%r12), %zmm24
	vbroadcastss	-68(%rcx,%r12), %zmm25
	vbroadcastss	-4(%rcx,%r12), %zmm26
	vbroadcastss	60(%rcx,%r12), %zmm27
	vmovaps	-18496(%rbx), %zmm20
	vmovaps	-64(%rbx), %zmm30
	vbroadcastss	-384(%rcx,%r12), %zmm29
	vmovaps	-18432(%rbx), %zmm18
	vfmadd231ps	%zmm20, %zmm19, %zmm2
	vfmadd231ps	%zmm20, %zmm21, %zmm3
	vfmadd231ps	%zmm21, %zmm30, %zmm11
	vfmadd231ps	%zmm20, %zmm22, %zmm4
	vfmadd231ps	%zmm22, %zmm30, %zmm12
	vbroadcastss	-256(%rcx,%r12), %zmm21
	vfmadd231ps	%zmm20, %zmm23, %zmm5
	vfmadd231ps	%zmm23, %zmm30, %zmm13
	vbroadcastss	-192(%rcx,%r12), %zmm22
	vfmadd231ps	%zmm20, %zmm24, %zmm6
	vfmadd231ps	%zmm24, %zmm30, %zmm14
	vbroadcastss	-128(%rcx,%r12), %zmm23
	vfmadd231ps	%zmm20, %zmm25, %zmm7
	vfmadd231ps	%zmm25, %zmm30, %zmm15
	vbroadcastss	-64(%rcx,%r12), %zmm24
	vfmadd231ps	%zmm20, %zmm26, %zmm8
	vfmadd231ps	%zmm20, %zmm27, %zmm9
	vfmadd231ps	%zmm26, %zmm30, %zmm16
	vbroadcastss	-320(%rcx,%r12), %zmm20
	vbroadcastss	(%rcx,%r12), %zmm25
	vbroadcastss	64(%rcx,%r12), %zmm26
	vfmadd231ps	%zmm30, %zmm27, %zmm17
	vmovaps	(%rbx), %zmm27
	vfmadd231ps	%zmm19, %zmm30, %zmm10
	subq	$-128, %rbx
	addq	$8, %r12
	vfmadd231ps	%zmm18, %zmm29, %zmm2
	vfmadd231ps	%zmm29, %zmm27, %zmm10
	vfmadd231ps	%zmm18, %zmm20, %zmm3
	vfmadd231ps	%zmm18, %zmm21, %zmm4
	vfmadd231ps	%zmm18, %zmm22, %zmm5
	vfmadd231ps	%zmm18, %zmm23, %zmm6
	vfmadd231ps	%zmm18, %zmm24, %zmm7
	vfmadd231ps	%zmm18, %zmm25, %zmm8
	vfmadd231ps	%zmm18, %zmm26, %zmm9
	vfmadd231ps	%zmm20, %zmm27, %zmm11
	vfmadd231ps	%zmm21, %zmm27, %zmm12
	vfmadd231ps	%zmm22, %zmm27, %zmm13
	vfmadd231ps	%zmm23, %zmm27, %zmm14
	vfmadd231ps	%zmm24, %zmm27, %zmm15
	vfmadd231ps	%zmm25, %zmm27, %zmm16
	vfmadd231ps	%zmm27, %zmm26, %zmm17
	jne	.LBB4_52
	movq	$-16, %r12
	movq	%rdi, %rbx
.LBB4_54:
	vbroadcastss	-388(%rdx,%r12,4), %zmm19
	vbroadcastss	-324(%rdx,%r12,4), %zmm21
	vbroadcastss	-260(%rdx,%r12,4), %zmm22
	vbroadcastss	-196(%rdx,%r12,4), %zmm23
	vbroadcastss	-132(%rdx,%r12,4), %zmm24
	vbroadcastss	-68(%rdx,%r12,4), %zmm25
	vbroadcastss	-4(%rdx,%r12,4), %zmm26
	vbroadcastss	60(%rdx,%r12,4), %zmm27
	vmovaps	-18496(%rbx), %zmm20
	vmovaps	-64(%rbx), %zmm30
	vbroadcastss	-384(%rdx,%r12,4), %zmm29
	vmovaps	-18432(%rbx), %zmm18
	vfmadd231ps	%zmm20, %zmm19, %zmm2
	vfmadd231ps	%zmm20, %zmm21, %zmm3
	vfmadd231ps	%zmm21, %zmm30, %zmm11
	vfmadd231ps	%zmm20, %zmm22, %zmm4
	vfmadd231ps	%zmm22, %zmm30, %zmm12
	vbroadcastss	-256(%rdx,%r12,4), %zmm21
	vfmadd231ps	%zmm20, %zmm23, %zmm5
	vfmadd231ps	%zmm23, %zmm30, %zmm13
	vbroadcastss	-192(%rdx,%r12,4), %zmm22
	vfmadd231ps	%zmm20, %zmm24, %zmm6
	vfmadd231ps	%zmm24, %zmm30, %zmm14
	vbroadcastss	-128(%rdx,%r12,4), %zmm23
	vfmadd231ps	%zmm20, %zmm25, %zmm7
	vfmadd231ps	%zmm25, %zmm30, %zmm15
	vbroadcastss	-64(%rdx,%r12,4), %zmm24
	vfmadd231ps	%zmm20, %zmm26, %zmm8
	vfmadd231ps	%zmm20, %zmm27, %zmm9
	vfmadd231ps	%zmm26, %zmm30, %zmm16
	vbroadcastss	-320(%rdx,%r12,4), %zmm20
	vbroadcastss	(%rdx,%r12,4), %zmm25
	vbroadcastss	64(%rdx,%r12,4), %zmm26
	vfmadd231ps	%zmm30, %zmm27, %zmm17
	vmovaps	(%rbx), %zmm27
	vfmadd231ps	%zmm19, %zmm30, %zmm10
	subq	$-128, %rbx
	addq	$2, %r12
	vfmadd231ps	%zmm18, %zmm29, %zmm2
	vfmadd231ps	%zmm29, %zmm27, %zmm10
	vfmadd231ps	%zmm18, %zmm20, %zmm3
	vfmadd231ps	%zmm18, %zmm21, %zmm4
	vfmadd231ps	%zmm18, %zmm22, %zmm5
	vfmadd231ps	%zmm18, %zmm23, %zmm6
	vfmadd231ps	%zmm18, %zmm24, %zmm7
	vfmadd231ps	%zmm18, %zmm25, %zmm8
	vfmadd231ps	%zmm18, %zmm26, %zmm9
	vfmadd231ps	%zmm20, %zmm27, %zmm11
	vfmadd231ps	%zmm21, %zmm27, %zmm12
	vfmadd231ps	%zmm22, %zmm27, %zmm13
	vfmadd231ps	%zmm23, %zmm27, %zmm14
	vfmadd231ps	%zmm24, %zmm27, %zmm15
	vfmadd231ps	%zmm25, %zmm27, %zmm16
	vfmadd231ps	%zmm27, %zmm26, %zmm17
	jne	.LBB4_54
	movq	$-64, %r12
	movq	%rsi, %rbx
.LBB4_56:
	vbroadcastss	-388(%r14,%r12), %zmm19
	vbroadcastss	-324(%r14,%r12), %zmm21
	vbroadcastss	-260(%r14,%r12), %zmm22
	vbroadcastss	-196(%r14,%r12), %zmm23
	vbroadcastss	-132(%r14,%r12), %zmm24
	vbroadcastss	-68(%r14,%r12), %zmm25
	vbroadcastss	-4(%r14,%r12), %zmm26
	vbroadcastss	60(%r14,%r12), %zmm27
	vmovaps	-18496(%rbx), %zmm20
	vmovaps	-64(%rbx), %zmm30
	vbroadcastss	-384(%r14,%r12), %zmm29
	vmovaps	-18432(%rbx), %zmm18
	vfmadd231ps	%zmm20, %zmm19, %zmm2
	vfmadd231ps	%zmm20, %zmm21, %zmm3
	vfmadd231ps	%zmm21, %zmm30, %zmm11
	vfmadd231ps	%zmm20, %zmm22, %zmm4
	vfmadd231ps	%zmm22, %zmm30, %zmm12
	vbroadcastss	-256(%r14,%r12), %zmm21
	vfmadd231ps	%zmm20, %zmm23, %zmm5
	vfmadd231ps	%zmm23, %zmm30, %zmm13
	vbroadcastss	-192(%r14,%r12), %zmm22
	vfmadd231ps	%zmm20, %zmm24, %zmm6
	vfmadd231ps	%zmm24, %zmm30, %zmm14
	vbroadcastss	-128(%r14,%r12), %zmm23
	vfmadd231ps	%zmm20, %zmm25, %zmm7
	vfmadd231ps	%zmm25, %zmm30, %zmm15
	vbroadcastss	-64(%r14,%r12), %zmm24
	vfmadd231ps	%zmm20, %zmm26, %zmm8
	vfmadd231ps	%zmm20, %zmm27, %zmm9
	vfmadd231ps	%zmm26, %zmm30, %zmm16
	vbroadcastss	-320(%r14,%r12), %zmm20
	vbroadcastss	(%r14,%r12), %zmm25
	vbroadcastss	64(%r14,%r12), %zmm26
	vfmadd231ps	%zmm30, %zmm27, %zmm17
	vmovaps	(%rbx), %zmm27
	vfmadd231ps	%zmm19, %zmm30, %zmm10
	subq	$-128, %rbx
	addq	$8, %r12
	vfmadd231ps	%zmm18, %zmm29, %zmm2
	vfmadd231ps	%zmm29, %zmm27, %zmm10
	vfmadd231ps	%zmm18, %zmm20, %zmm3
	vfmadd231ps	%zmm18, %zmm21, %zmm4
	vfmadd231ps	%zmm18, %zmm22, %zmm5
	vfmadd231ps	%zmm18, %zmm23, %zmm6
	vfmadd231ps	%zmm18, %zmm24, %zmm7
	vfmadd231ps	%zmm18, %zmm25, %zmm8
	vfmadd231ps	%zmm18, %zmm26, %zmm9
	vfmadd231ps	%zmm20, %zmm27, %zmm11
	vfmadd231ps	%zmm21, %zmm27, %zmm12
	vfmadd231ps	%zmm22, %zmm27, %zmm13
	vfmadd231ps	%zmm23, %zmm27, %zmm14
	vfmadd231ps	%zmm24, %zmm27, %zmm15
	vfmadd231ps	%zmm25, %zmm27, %zmm16
	vfmadd231ps	%zmm27, %zmm26, %zmm17
	jne	.LBB4_56
	incq	%r9
	addq	$3072, %r8
	addq	$1152, %rcx
	addq	$3072, %rdi
	addq	$1152, %rdx
	addq	$3072, %rsi
	addq	$1152, %r14
	cmpq	$3, %r9
	jne	.LBB4_51
	vaddps	%zmm2, %zmm0, %zmm18
	vaddps	%zmm3, %zmm0, %zmm19
	vaddps	%zmm4, %zmm0, %zmm20
	vmaxps	%zmm28, %zmm18, %zmm18
	vmovaps	%zmm18, (%r11,%r10,4)
	vmaxps	%zmm28, %zmm19, %zmm18
	vaddps	%zmm5, %zmm0, %zmm19
	vmovaps	%zmm18, 64(%r11,%r10,4)
	vmaxps	%zmm28, %zmm20, %zmm18
	vaddps	%zmm6, %zmm0, %zmm20
	vmovaps	%zmm18, 128(%r11,%r10,4)
	vmaxps	%zmm28, %zmm19, %zmm18
	vaddps	%zmm7, %zmm0, %zmm19
	vmovaps	%zmm18, 192(%r11,%r10,4)
	vmaxps	%zmm28, %zmm20, %zmm18
	vaddps	%zmm8, %zmm0, %zmm20
	vmovaps	%zmm18, 256(%r11,%r10,4)
	vmaxps	%zmm28, %zmm19, %zmm18
	vaddps	%zmm9, %zmm0, %zmm19
	vmovaps	%zmm18, 320(%r11,%r10,4)
	vmaxps	%zmm28, %zmm20, %zmm18
	vaddps	%zmm10, %zmm1, %zmm20
	vmovaps	%zmm18, 384(%r11,%r10,4)
	vmaxps	%zmm28, %zmm19, %zmm18
	vaddps	%zmm11, %zmm1, %zmm19
	vmovaps	%zmm18, 448(%r11,%r10,4)
	vmaxps	%zmm28, %zmm20, %zmm18
	vaddps	%zmm12, %zmm1, %zmm20
	vmovaps	%zmm18, 16384(%r11,%r10,4)
	vmaxps	%zmm28, %zmm19, %zmm18
	vaddps	%zmm13, %zmm1, %zmm19
	vmovaps	%zmm18, 16448(%r11,%r10,4)
	vmaxps	%zmm28, %zmm20, %zmm18
	vaddps	%zmm14, %zmm1, %zmm20
	vmovaps	%zmm18, 16512(%r11,%r10,4)
	vmaxps	%zmm28, %zmm19, %zmm18
	vaddps	%zmm15, %zmm1, %zmm19
	vmovaps	%zmm18, 16576(%r11,%r10,4)
	vmaxps	%zmm28, %zmm20, %zmm18
	vaddps	%zmm16, %zmm1, %zmm20
	vmovaps	%zmm18, 16640(%r11,%r10,4)
	vmaxps	%zmm28, %zmm19, %zmm18
	vaddps	%zmm17, %zmm1, %zmm19
	vmovaps	%zmm18, 16704(%r11,%r10,4)
	vmaxps	%zmm28, %zmm20, %zmm18
	vmovaps	%zmm18, 16768(%r11,%r10,4)
	vmaxps	%zmm28, %zmm19, %zmm18
	vmovaps	%zmm18, 16832(%r11,%r10,4)
	movl	$128, %r10d
	testb	$1, %al
	movl	$0, %eax
	jne	.LBB4_42
	movq	88(%rsp), %r11
	addq	$1152, 80(%rsp)
	addq	$1152, 72(%rsp)
	addq	$1152, 64(%rsp)
	addq	$1152, 56(%rsp)
	addq	$1152, 48(%rsp)
	addq	$1152, 40(%rsp)
	incq	%r11
	cmpq	$4, %r11
	jne	.LBB4_41
	movq	104(%rsp), %rdx
	movl	28(%rsp), %ebx
	movq	__TVMBackendFreeWorkspace@GOTPCREL(%rip), %r14
	movl	$1, %edi
	vmovups	%zmm2, (%rdx)
	vmovups	%zmm3, 64(%rdx)
	vmovups	%zmm4, 128(%rdx)
	vmovups	%zmm5, 192(%rdx)
	vmovups	%zmm6, 256(%rdx)
	vmovups	%zmm7, 320(%rdx)
	vmovups	%zmm8, 384(%rdx)
	vmovups	%zmm9, 448(%rdx)
	vmovups	%zmm10, 512(%rdx)
	vmovups	%zmm11, 576(%rdx)
	vmovups	%zmm12, 640(%rdx)
	vmovups	%zmm13, 704(%rdx)
	vmovups	%zmm14, 768(%rdx)
	vmovups	%zmm15, 832(%rdx)
	vmovups	%zmm16, 896(%rdx)
	movl	%ebx, %esi
	vmovups	%zmm17, 960(%rdx)
	vzeroupper
	callq	*(%r14)
	testl	%eax, %eax
	jne	.LBB4_65
	movq	(%rsp), %rdx
	movl	$1, %edi
	movl	%ebx, %esi
	callq	*(%r14)
	movq	8(%rsp), %r12
	movq	32(%rsp), %rbp
	movq	__TVMBackendAllocWorkspace@GOTPCREL(%rip), %r15
	testl	%eax, %eax
	movl	$-1, %eax
	jne	.LBB4_66
	movq	16(%rsp), %rdx
	xorl	%eax, %eax
	incq	%rdx
	movq	%rdx, 16(%rsp)
	cmpq	120(%rsp), %rdx
	jne	.LBB4_2
	jmp	.LBB4_66
.LBB4_63:
	xorl	%eax, %eax
	retq
.LBB4_65:
	movl	$-1, %eax
.LBB4_66:
	addq	$168, %rsp
	popq	%rbx
	popq	%r12
	popq	%r13
	popq	%r14
	popq	%r15
	popq	%rbp
	retq
.Lfunc_end4:

